// Ranking by dragging: a picture onto the strip of the order, or within it, by mouse, pen or finger. Beside a picture is before or
// after it, on one is the same place, and off the strip is no place.

const FAR = 6; // pixels that make a drag of a click

function drawOrder() {
  const strip = $(".mm-order");
  strip.replaceChildren(...draft.groups.map((group, rank) => {
    const thumbs = group.map((i) => {
      const thumb = make("span", { className: "mm-thumb" });
      thumb.dataset.place = i;
      thumb.style.backgroundImage = `url("${question.images[i]}")`;
      return thumb;
    });
    return make("span", { className: "mm-group" }, make("b", {}, String(rank + 1)), ...thumbs);
  }));
  strip.classList.toggle("mm-empty", !draft.groups.length);
}

// where in the order a point is: { on: a group }, { before: a group }, or null beside the strip
function spotAt(x, y) {
  const strip = $(".mm-order").getBoundingClientRect();
  if (y < strip.top - 16 || y > strip.bottom + 16 || x < strip.left || x > strip.right) return null;
  const boxes = $$(".mm-group").map((group) => group.getBoundingClientRect());
  for (const [rank, box] of boxes.entries()) {
    if (x < box.left + box.width / 4) return { before: rank };
    if (x <= box.right - box.width / 4) return { on: rank };
  }
  return { before: boxes.length };
}

function drop(i, spot) {
  const groups = draft.groups.map((group) => group.filter((other) => other !== i));
  if (spot?.on !== undefined) groups[spot.on].push(i);
  else if (spot) groups.splice(spot.before, 0, [i]);
  const left = groups.filter((group) => group.length);
  if (JSON.stringify(left) !== JSON.stringify(draft.groups)) edit({ groups: left, same: false });
}

function pointTo(spot) {
  $$(".mm-group").forEach((group, rank, all) => {
    group.classList.toggle("mm-on", spot?.on === rank);
    group.classList.toggle("mm-before", spot?.before === rank);
    group.classList.toggle("mm-after", spot?.before === all.length && rank === all.length - 1);
  });
  $(".mm-order").classList.toggle("mm-over", !!spot);
}

function bindDrag(mode, signal) {
  let drag = null; // { i, x, y, of: the element, ghost }
  const listen = (name, react) => card.addEventListener(name, react, { signal });
  const end = () => {
    drag?.ghost?.remove();
    if (drag) pointTo(null);
    drag = null;
  };
  listen("pointerdown", (event) => {
    end();
    mode.dragged = false;
    const of = event.target.closest(".mm-picture, .mm-thumb");
    if (!of || !question || modeOf() !== mode || shownAt === null || busy || event.button !== 0) return;
    const i = of.dataset.place === undefined ? $$(".mm-slot").indexOf(of.closest(".mm-slot")) : Number(of.dataset.place);
    drag = { i, of, x: event.clientX, y: event.clientY, asked: question.task };
  });
  listen("pointermove", (event) => {
    if (!drag) return;
    if (!drag.ghost) {
      if (Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < FAR) return;
      mode.dragged = true; // the click that ends it is none
      drag.of.setPointerCapture(event.pointerId);
      drag.ghost = make("span", { className: "mm-ghost" });
      drag.ghost.style.backgroundImage = `url("${question.images[drag.i]}")`;
      card.append(drag.ghost);
    }
    drag.ghost.style.translate = `${event.clientX}px ${event.clientY}px`;
    pointTo(spotAt(event.clientX, event.clientY));
  });
  listen("pointerup", (event) => {
    const { i, ghost, of, asked } = drag ?? {};
    end();
    if (!ghost || question?.task !== asked) return;
    const spot = spotAt(event.clientX, event.clientY);
    if (spot || of.dataset.place !== undefined) drop(i, spot);
  });
  listen("pointercancel", end);
}
