// The pictures that show what the instructions mean.

const EXAMPLES_CLOSED = "mmrlhf-examples-closed";

// open until the rater closes them, which the tab remembers
function drawExamples(examples) {
  const panel = $(".mm-examples");
  panel.hidden = !examples.length;
  const said = JSON.stringify(examples);
  if (panel.dataset.said === said) return; // as they were: a large one stays large
  panel.dataset.said = said;
  panel.querySelector("summary span").textContent = examples.length === 1 ? "Example" : `${examples.length} examples`;
  panel.open = recall(EXAMPLES_CLOSED) === null;
  panel.querySelector(".mm-shown").replaceChildren(...examples.map(example));
}

function example({ image, caption, better }) {
  const picture = make("img", { src: image, alt: caption || "Example", draggable: false });
  const button = make("button", { type: "button", className: "mm-example", ariaLabel: `Larger or smaller: ${caption || "example"}` }, picture);
  const verdict = better === null ? [] : [make("b", { className: better ? "mm-better" : "mm-worse" }, better ? "\u2713 better" : "\u2717 worse")];
  return make("figure", {}, button, make("figcaption", {}, ...verdict, make("span", {}, caption)));
}

function toggleExamples() {
  const panel = $(".mm-examples");
  if (panel.hidden) return false;
  panel.open = !panel.open;
  remember(EXAMPLES_CLOSED, panel.open ? null : true);
  return true;
}

function enlarge(button) {
  button.classList.toggle("mm-large");
  button.closest("figure").scrollIntoView({ block: "nearest", inline: "nearest" });
}
