// The mode that points at places in a picture.

// draft: { points: [{ x, y, tag }, …] } from the picture's top left corner, 0 to 1
const pointsMode = {
  ask: "Where is something wrong in this picture?",
  repeats: true,
  label: () => "Click where it is; arrow keys move the cross, space sets a point",
  begin(next) {
    this.tag = 0;
    this.cross = null;
    $(".mm-for-points:not(.mm-how)").replaceChildren(...next.tags.map((tag, i) => {
      const button = make("button", { type: "button", className: "mm-button" }, make("kbd", {}, String(i + 1)), this.dot(i), make("span", {}, tag));
      button.dataset.kind = i;
      return button;
    }));
    return { points: next.value ?? [] };
  },
  dot: (i) => make("i", { className: `mm-dot mm-dot-${i % 6}` }, String(i + 1)),
  add(x, y) {
    edit({ points: [...draft.points, { x, y, tag: question.tags[this.tag] }] });
  },
  picture(_, event) {
    if (event.detail === 0) return; // a key pressed the button, not the mouse
    const box = $(".mm-layer").getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (x < 0 || x > 1 || y < 0 || y > 1) return; // the margin beside the picture
    this.cross = [x, y];
    const [point, distance] = this.nearest(x, y, box);
    if (distance < 12) edit({ points: draft.points.filter((other) => other !== point) });
    else this.add(x, y);
  },
  nearest(x, y, box) {
    const far = (point) => Math.hypot((point.x - x) * box.width, (point.y - y) * box.height);
    return draft.points.map((point) => [point, far(point)]).reduce((a, b) => (b[1] < a[1] ? b : a), [null, Infinity]);
  },
  key(key, event) {
    const step = event.shiftKey ? 0.1 : 0.02;
    const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[key];
    if (way) {
      const [x, y] = this.cross ?? [0.5, 0.5];
      this.cross = [x + way[0], y + way[1]].map((each) => Math.min(Math.max(each, 0), 1));
      redraw();
    } else if (event.repeat) return false;
    else if (key === " ") {
      this.cross ??= [0.5, 0.5];
      this.add(...this.cross);
    } else if (/^[1-9]$/.test(key) && Number(key) <= question.tags.length) this.choose(Number(key) - 1);
    else return false;
    return true;
  },
  choose(tag) {
    this.tag = tag;
    redraw();
  },
  click(button) {
    if (button.dataset.kind !== undefined) this.choose(Number(button.dataset.kind));
  },
  draw() {
    $$("[data-kind]").forEach((button, i) => press(button, i === this.tag));
    const at = (element, [x, y]) => { Object.assign(element.style, { left: `${100 * x}%`, top: `${100 * y}%` }); return element; };
    const dots = draft.points.map((point) => {
      const known = question.tags.indexOf(point.tag);
      const dot = this.dot(known < 0 ? 5 : known);
      dot.title = point.tag;
      if (known < 0) dot.textContent = "?";
      return at(dot, [point.x, point.y]);
    });
    const cross = this.cross ? [at(make("i", { className: "mm-cross" }), this.cross)] : [];
    $(".mm-layer").replaceChildren(...dots, ...cross);
  },
  fit(image) { // the layer lies on the picture itself, not on the margin that fills up the square
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    const layer = $(".mm-layer");
    layer.style.width = `calc((100% - 2 * var(--pad)) * ${Math.min(1, width / height)})`;
    layer.style.height = `calc((100% - 2 * var(--pad)) * ${Math.min(1, height / width)})`;
  },
  missing: () => "",
  value: () => draft.points,
};
