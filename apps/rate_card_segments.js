// The mode that marks words of an answer. Marks are kept by words and sent by code points, as Python counts characters.

// draft: { marks: [{ first, last, tag, correction }, …] by the numbers of words, in order, none overlapping }
const segmentsMode = {
  ask: "Which words are right, and which are not?",
  repeats: true,
  tags: { c: "correct", m: "misleading", i: "irrelevant" },
  begin(next) {
    this.words = wordsOf(next.text);
    this.anchor = this.focus = 0;
    const draft = { marks: [] };
    for (const { start, end, tag, correction } of next.value ?? []) {
      const [from, to] = [start, end].map((place) => [...next.text].slice(0, place).join("").length);
      const first = this.words.findIndex((word) => word.end > from);
      const last = this.words.findLastIndex((word) => word.start < to);
      if (first >= 0 && last >= first) draft.marks = placed(draft.marks, { first, last, tag, correction: correction ?? null });
    }
    this.editing = null;
    return draft;
  },
  selected() {
    return [Math.min(this.anchor, this.focus), Math.max(this.anchor, this.focus)];
  },
  quote(first, last) {
    return question.text.slice(this.words[first].start, this.words[last].end);
  },
  mark(tag) {
    const [first, last] = this.selected();
    const same = draft.marks.find((mark) => mark.first === first && mark.last === last && mark.tag === tag);
    if (!same) edit({ marks: placed(draft.marks, tag && { first, last, tag, correction: null }, first, last) });
    if (tag === "misleading") this.correct(first, last);
  },
  correct(first, last) {
    this.editing = [first, last];
    const mark = draft.marks.find((each) => each.first === first && each.last === last);
    const input = $("#mm-correction");
    input.value = mark.correction ?? "";
    this.drawSelection();
    input.focus();
  },
  finish(keep) { // of the typed correction
    if (!this.editing) return;
    const [first, last] = this.editing;
    this.editing = null;
    const typed = $("#mm-correction").value.trim();
    $("#mm-correction").value = "";
    if (keep && typed === this.quote(first, last)) say("That is what stands there already: the mark has no correction.");
    else if (keep) {
      const marks = draft.marks.map((mark) => (mark.first === first && mark.last === last ? { ...mark, correction: typed || null } : mark));
      edit({ marks });
    }
    $("#mm-correction").blur();
    this.drawSelection();
  },
  key(key, event) {
    const tag = this.tags[key];
    if (key === "ArrowLeft" || key === "ArrowRight") this.move(this.focus + (key === "ArrowLeft" ? -1 : 1), event.shiftKey);
    else if (key === "ArrowUp" || key === "ArrowDown") this.move(this.across(key === "ArrowUp"), event.shiftKey);
    else if (key === "Home" || key === "End") this.move(key === "Home" ? 0 : this.words.length - 1, event.shiftKey);
    else if (event.repeat) return false;
    else if (tag) this.mark(tag);
    else if (key === "Delete" || key === "x") this.mark(null);
    else return false;
    return true;
  },
  move(to, extend) {
    this.focus = Math.min(Math.max(to, 0), this.words.length - 1);
    if (!extend) this.anchor = this.focus;
    this.drawSelection();
    this.spans[this.focus]?.scrollIntoView({ block: "nearest" });
  },
  across(up) { // the word above or below
    const boxes = this.spans.map((span) => span.getBoundingClientRect());
    const here = boxes[this.focus];
    const middle = (box) => (box.left + box.right) / 2;
    const beyond = boxes.filter((box) => (up ? box.bottom <= here.top + 1 : box.top >= here.bottom - 1));
    if (!beyond.length) return up ? 0 : this.words.length - 1;
    const line = up ? Math.max(...beyond.map((box) => box.top)) : Math.min(...beyond.map((box) => box.top));
    const near = beyond.filter((box) => Math.abs(box.top - line) < 4);
    return boxes.indexOf(near.reduce((best, box) => (Math.abs(middle(box) - middle(here)) < Math.abs(middle(best) - middle(here)) ? box : best)));
  },
  click(button) {
    if (button.dataset.tag !== undefined) this.mark(button.dataset.tag || null);
  },
  draw() {
    const text = question.text;
    this.spans = this.words.map((word, i) => {
      const span = make("span", { className: "mm-w" }, text.slice(word.start, word.end));
      span.dataset.word = i;
      return span;
    });
    const parts = [];
    for (let i = 0, reached = 0; i < this.words.length; ) {
      parts.push(text.slice(reached, this.words[i].start));
      const mark = draft.marks.find((each) => each.first === i);
      const last = mark ? mark.last : i;
      const inner = [];
      for (let k = i; k <= last; k++) inner.push(...(k > i ? [text.slice(this.words[k - 1].end, this.words[k].start)] : []), this.spans[k]);
      if (!mark) parts.push(...inner);
      else {
        const label = make("span", { className: "mm-tag" }, mark.tag + (mark.correction === null ? "" : ` → ${mark.correction}`));
        parts.push(make("mark", { className: `mm-mark mm-${mark.tag}`, title: label.textContent }, label, ...inner));
      }
      reached = this.words[last].end;
      i = last + 1;
    }
    $(".mm-text").replaceChildren(...parts, text.slice(this.words.at(-1)?.end ?? 0));
    this.drawSelection();
    this.fitTags();
  },
  fitTags() { // a label is no wider than the first line of its words; where that is narrow, one letter
    $$(".mm-mark").forEach((mark) => {
      const label = mark.querySelector(".mm-tag");
      const full = mark.title;
      const room = [...mark.querySelectorAll(".mm-w")].map((word) => word.getBoundingClientRect());
      const right = Math.max(...room.filter((box) => Math.abs(box.top - room[0].top) < 4).map((box) => box.right));
      label.style.maxWidth = `${Math.max(right - room[0].left, 12)}px`;
      label.textContent = full;
      if (label.scrollWidth > label.clientWidth && full.includes(" → ")) label.textContent = full.split(" → ")[0];
      if (label.scrollWidth > label.clientWidth) label.textContent = full[0].toUpperCase();
    });
  },
  drawSelection() {
    const [first, last] = this.selected();
    this.spans.forEach((span, i) => {
      span.classList.toggle("mm-sel", i >= first && i <= last);
      span.classList.toggle("mm-sel-first", i === first);
      span.classList.toggle("mm-sel-last", i === last);
    });
    const mark = draft.marks.find((each) => each.first <= last && each.last >= first);
    const words = this.words.length ? `“${this.quote(first, last)}”` : "";
    const says = !mark ? "no mark" : mark.tag + (mark.correction === null ? "" : `, should be “${mark.correction}”`);
    $(".mm-said").textContent = `${words}: ${says}`;
    $$("[data-tag]").forEach((button) => press(button, !!mark && button.dataset.tag === mark.tag));
    $(".mm-should").classList.toggle("mm-open", this.editing !== null);
    $("#mm-correction").disabled = this.editing === null;
  },
  bind(signal) {
    const text = $(".mm-text");
    const wordAt = (event) => {
      const word = document.elementFromPoint(event.clientX, event.clientY)?.closest?.(".mm-w");
      return word && text.contains(word) ? Number(word.dataset.word) : null;
    };
    let dragging = false;
    const active = () => modeOf(question) === this && card.dataset.screen === "rate" && shownAt !== null && !busy;
    const listen = (target, name, react) => target.addEventListener(name, (event) => { if (question && active()) react(event); }, { signal });
    listen(text, "pointerdown", (event) => {
      const word = wordAt(event);
      if (word === null || event.button !== 0) return;
      this.finish(true);
      event.preventDefault(); // no selection of the browser's own
      dragging = true;
      text.setPointerCapture(event.pointerId);
      this.move(word, event.shiftKey);
    });
    listen(text, "pointermove", (event) => {
      const word = dragging ? wordAt(event) : null;
      if (word !== null && word !== this.focus) this.move(word, true);
    });
    for (const name of ["pointerup", "pointercancel"]) text.addEventListener(name, () => { dragging = false; }, { signal });
    listen($("#mm-correction"), "keydown", (event) => {
      if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
      event.preventDefault();
      event.stopPropagation(); // Enter would save the whole answer
      this.finish(event.key === "Enter");
    });
    listen($("#mm-correction"), "blur", () => this.finish(true));
    window.addEventListener("resize", () => { if (question && active()) this.fitTags(); }, { signal });
  },
  missing: () => "",
  value() {
    const place = (index) => [...question.text.slice(0, index)].length;
    return draft.marks.map(({ first, last, tag, correction }) => ({
      start: place(this.words[first].start), end: place(this.words[last].end), tag, ...(correction === null ? {} : { correction }),
    }));
  },
};

function wordsOf(text) {
  if (!window.Intl?.Segmenter) return [...text.matchAll(/\S+/g)].map((match) => ({ start: match.index, end: match.index + match[0].length }));
  const parts = [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)]; // finds words in Chinese or Thai, too
  return parts.filter((part) => part.segment.trim()).map((part) => ({ start: part.index, end: part.index + part.segment.length }));
}

// the marks with a new one in its place, or with none from `first` to `last`; what it covers of the others is cut off
function placed(marks, mark, first = mark.first, last = mark.last) {
  const rest = marks.flatMap((other) => {
    if (other.last < first || other.first > last) return [other];
    const cut = { ...other, correction: null }; // which was for the whole
    return [{ ...cut, last: first - 1 }, { ...cut, first: last + 1 }].filter((piece) => piece.first <= piece.last);
  });
  return [...rest, ...(mark ? [mark] : [])].sort((a, b) => a.first - b.first);
}
