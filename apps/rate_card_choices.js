// Modes of the rating card. A mode says what its keys do. With `begin` it collects a draft, which `edit` changes and Enter saves;
// without, a key or a button is the answer. rate_card.js, which is read after this file, has the rest.

const pairMode = {
  ask: "Which picture is better?",
  choices: { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", ArrowUp: "both_bad" },
  label: (i) => (i ? "Choose the right picture" : "Choose the left picture"),
  picture: (i) => choose(i ? "right" : "left"),
};

const likertMode = {
  ask: "How good is this picture?",
  choices: { 1: "1", 2: "2", 3: "3", 4: "4", 5: "5" },
};

// draft: { scores: {criterion: level}, at: which one the next digit fills }
const criteriaMode = {
  ask: "How good is this picture?",
  levels: ["Very bad", "Bad", "Fair", "Good", "Very good"],
  begin(next) {
    $(".mm-for-criteria").replaceChildren(...next.criteria.map((name, row) => {
      const buttons = this.levels.map((words, i) => make("button", { type: "button", className: "mm-level", title: words, ariaLabel: `${name}: ${i + 1}, ${words}` }, String(i + 1)));
      buttons.forEach((button, i) => Object.assign(button.dataset, { row, level: i + 1 }));
      const levels = make("div", { className: "mm-levels", role: "group", ariaLabel: name }, ...buttons);
      return make("div", { className: "mm-row" }, make("span", { className: "mm-name" }, name), levels, make("span", { className: "mm-word" }));
    }));
    const scores = Object.fromEntries(next.criteria.filter((name) => next.value?.[name]).map((name) => [name, next.value[name]]));
    return { scores, at: 0 };
  },
  set(row, level) {
    const names = question.criteria;
    const scores = { ...draft.scores, [names[row]]: level };
    const after = [...names.keys()].slice(row + 1).find((i) => !(names[i] in scores));
    const open = after ?? names.findIndex((name) => !(name in scores));
    edit({ scores, at: open >= 0 ? open : past ? Math.min(row + 1, names.length - 1) : row });
  },
  key(key) {
    if (/^[1-5]$/.test(key)) this.set(draft.at, Number(key));
    else if (key === "ArrowUp" || key === "ArrowDown") {
      draft = { ...draft, at: Math.min(Math.max(draft.at + (key === "ArrowUp" ? -1 : 1), 0), question.criteria.length - 1) };
      redraw();
    } else return false;
    return true;
  },
  click(button) {
    if (button.dataset.level) this.set(Number(button.dataset.row), Number(button.dataset.level));
  },
  draw() {
    $$(".mm-row").forEach((row, i) => {
      const level = draft.scores[question.criteria[i]];
      row.classList.toggle("mm-at", i === draft.at);
      row.querySelector(".mm-word").textContent = level ? this.levels[level - 1] : "";
      row.querySelectorAll(".mm-level").forEach((button, k) => press(button, k + 1 === level));
    });
  },
  missing: () => (question.criteria.every((name) => name in draft.scores) ? "" : `Give a level for ${question.criteria.find((name) => !(name in draft.scores))}.`),
  value: () => draft.scores,
};

// draft: { groups: [[place on the screen, …], …] from the best, same: whether the next joins the last group }
const rankMode = {
  ask: "Put the pictures in order, the best first",
  label: (i) => `Picture ${i + 1}`,
  begin(next) {
    const ranks = [...new Set(next.value ?? [])].sort((a, b) => a - b);
    return { groups: ranks.map((rank) => next.value.flatMap((other, i) => (other === rank ? [i] : []))), same: false };
  },
  picture(i, event) {
    if (event?.detail && this.dragged) return; // the end of a drag
    const placed = draft.groups.some((group) => group.includes(i));
    const groups = draft.groups.map((group) => group.filter((other) => other !== i)).filter((group) => group.length);
    if (!placed && draft.same && groups.length) groups[groups.length - 1].push(i);
    else if (!placed) groups.push([i]);
    edit({ groups, same: false });
  },
  key(key) {
    if (key === "=") this.same();
    else if (/^[1-9]$/.test(key) && Number(key) <= question.images.length) this.picture(Number(key) - 1);
    else return false;
    return true;
  },
  same() {
    if (draft.groups.length) edit({ ...draft, same: !draft.same });
    else say("Give a first picture its place before.");
  },
  click(button) {
    if (button.dataset.same !== undefined) this.same();
  },
  draw() {
    $$(".mm-slot:not([hidden])").forEach((slot, i) => {
      const group = draft.groups.findIndex((each) => each.includes(i));
      const tied = group >= 0 && draft.groups[group].length > 1;
      slot.querySelector(".mm-place").textContent = group < 0 ? "" : `${tied ? "=" : ""}${group + 1}`;
      slot.querySelector(".mm-picture").classList.toggle("mm-chosen", group >= 0);
      slot.querySelector(".mm-picture").ariaLabel = `Picture ${i + 1}, ${group < 0 ? "no place yet" : `place ${group + 1}${tied ? ", tied" : ""}`}`;
    });
    press($("[data-same]"), draft.same);
    drawOrder();
  },
  bind(signal) {
    bindDrag(this, signal);
  },
  missing: () => (draft.groups.flat().length === question.images.length ? "" : "Give each picture a place first."),
  value: () => question.images.map((_, i) => draft.groups.findIndex((group) => group.includes(i)) + 1),
};
