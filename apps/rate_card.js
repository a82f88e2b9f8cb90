// The rating card. The server's state is the only truth: this script draws it, sends choices, and keeps an unsent one.
const card = element.querySelector(".mm");
const $ = (selector) => card.querySelector(selector);
const $$ = (selector) => [...card.querySelectorAll(selector)];
const PENDING = "mmrlhf-pending-vote";
const MODES = { pair: pairMode, likert: likertMode, criteria: criteriaMode, rank: rankMode, segments: segmentsMode, points: pointsMode };

let state = null; // what /api/state said last
let question = null; // what is on the screen
let past = false; // whether that is an earlier answer, looked at again
let draft = null; // of a mode that collects one: what would be saved
let steps = []; // the drafts before it
let unsafe = new Set(); // the places of the pictures that are flagged
let flagging = false; // whether a digit flags a picture now
let shownAt = null; // when its pictures were there; null before
let busy = false;
let poll = 0;
const warmed = new Map(); // url -> Image, so that the next pair is there at once

window.mmRateStop?.abort(); // a card drawn again takes over the keyboard
const stop = (window.mmRateStop = new AbortController());

async function call(path, body) {
  const options = { signal: AbortSignal.timeout(15000), cache: "no-store", credentials: "same-origin" };
  if (body !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const detail = typeof answer.detail === "string" ? answer.detail : "The server did not understand this.";
  throw Object.assign(new Error(detail), { status: response.status });
}

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (properties.role) made.setAttribute("role", properties.role);
  made.append(...children); // texts stay texts
  return made;
}

function press(button, on) {
  button.classList.toggle("mm-chosen", on);
  button.setAttribute("aria-pressed", String(on));
}

const modeOf = () => MODES[card.dataset.mode];
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const isOutage = (error) => error.status === undefined || error.status >= 500;

function say(text) {
  $(".mm-alert").textContent = text;
  $(".mm-alert").hidden = !text;
}

async function insist(path, body, words) {
  // until it is answered; sending a vote again is safe, its id is the same
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const answer = await call(path, body);
      say("");
      return answer;
    } catch (error) {
      if (!isOutage(error)) { say(""); throw error; }
      say(words);
      await pause(wait);
      if (stop.signal.aborted) throw error;
    }
  }
}

function screen(name) {
  card.dataset.screen = name;
  stopClock();
  clearTimeout(poll);
}

function draw(fresh) {
  state = fresh;
  card.dataset.mode = state.mode;
  if (!state.name) return welcome();
  const percent = state.total ? (100 * state.answered) / state.total : 100;
  $(".mm-bar i").style.width = percent + "%";
  $(".mm-bar").setAttribute("aria-valuemax", state.total);
  $(".mm-bar").setAttribute("aria-valuenow", state.answered);
  $(".mm-count").textContent = `${state.answered} of ${state.total}`;
  $(".mm-pace").textContent = timeLeft(state.total - state.answered);
  $(".mm-who").textContent = state.name;
  state.tasks.forEach((task) => task.images.forEach(warm));
  const why = state.tasks.length ? breakDue() : "";
  if (why) rest(why);
  else if (state.tasks.length) show(state.tasks[0], false);
  else done();
}

function welcome() {
  question = null;
  $(".mm-welcome .mm-title").textContent = modeOf().ask;
  $(".mm-welcome .mm-lead").textContent = state.instructions || "You will see pictures made for a text. Say what you like; there is no wrong answer.";
  $("#mm-password").hidden = !($("#mm-password").required = !!state.password);
  screen("welcome");
  $("#mm-name").focus();
}

function done() {
  question = null;
  const thanks = state.more_to_come ? "Thank you, that is all for now." : "Thank you, that is all.";
  const next = state.more_to_come
    ? " More questions are being prepared: keep this page open, they appear here by themselves."
    : state.finished ? " You can close this page." : " When there is more to rate, it appears here.";
  $(".mm-done .mm-title").textContent = state.answered ? thanks : "Nothing to rate for you now.";
  $(".mm-done .mm-lead").textContent =
    (state.answered ? `${state.answered} ${state.answered === 1 ? "answer is" : "answers are"} saved under “${state.name}”.` : "") + next;
  screen("done");
  poll = setTimeout(refresh, 5000);
}

async function refresh() {
  try {
    const fresh = await call("api/state");
    if (card.dataset.screen === "done" && (fresh.tasks?.length || !fresh.name || fresh.total !== state.total)) return draw(fresh);
    if (card.dataset.screen === "done" && (fresh.finished !== state.finished || fresh.more_to_come !== state.more_to_come)) return draw(fresh);
  } catch (error) { /* the page says that all is saved; an ended server is no news */ }
  if (card.dataset.screen === "done") poll = setTimeout(refresh, 5000);
}

function warm(url) {
  if (warmed.has(url)) return warmed.get(url);
  const image = new Image();
  image.src = url;
  warmed.set(url, image);
  if (warmed.size > 12) warmed.delete(warmed.keys().next().value);
  return image;
}

async function show(next, isPast) {
  question = next;
  past = isPast;
  shownAt = null;
  $(".mm-pictures").ariaBusy = "true";
  card.classList.toggle("mm-past", past);
  card.classList.toggle("mm-drafts", !!modeOf().begin);
  screen("rate");
  const prompt = $(".mm-prompt");
  prompt.textContent = next.prompt;
  prompt.classList.toggle("mm-long", next.prompt.length > 120);
  $(".mm-hint").textContent = past ? "Your earlier answer. Choose again to change it" : modeOf().ask;
  $(".mm-guide").textContent = state.instructions;
  drawExamples(state.examples ?? []);
  mark(past ? next.choice : null);
  const images = drawPictures(next.images);
  $(".mm-text").textContent = $(".mm-about").textContent = next.text;
  unsafe = new Set(next.unsafe ?? []);
  arm(false);
  steps = [];
  draft = modeOf().begin?.(next) ?? null;
  restoreDraft(next);
  redraw();
  try {
    await Promise.all(images.map((image) => image.decode()));
  } catch (error) {
    if (question === next) say("A picture does not load. Skip it, or tell who runs this.");
    return;
  }
  if (question !== next) return;
  const ratio = window.devicePixelRatio || 1;
  images.forEach((image) => image.classList.toggle("mm-tiny", image.naturalWidth * 2 <= image.clientWidth * ratio));
  modeOf().fit?.(images[0]);
  $(".mm-pictures").ariaBusy = "false";
  shownAt = performance.now(); // a key pressed before is about the pair before: it does not count
  startClock();
}

function drawPictures(urls) {
  while ($$(".mm-slot").length < urls.length) $(".mm-pictures").append($(".mm-slot").cloneNode(true));
  $(".mm-pictures").dataset.count = urls.length;
  const slots = $$(".mm-slot");
  slots.forEach((slot, i) => {
    const picture = slot.querySelector(".mm-picture");
    const image = slot.querySelector("img");
    slot.hidden = picture.hidden = i >= urls.length;
    slot.querySelector(".mm-number").textContent = i + 1;
    slot.querySelector(".mm-flag kbd").textContent = urls.length > 1 ? `u ${i + 1}` : "u";
    picture.ariaLabel = image.alt = modeOf().label?.(i) ?? "Picture";
    picture.classList.remove("mm-chosen");
    if (state.mode === "pair") picture.dataset.choice = i ? "right" : "left";
    else delete picture.dataset.choice;
    if (picture.hidden) image.removeAttribute("src");
    else if (image.getAttribute("src") !== urls[i]) image.src = urls[i];
  });
  if (past) mark(question.choice);
  return slots.filter((slot) => !slot.hidden).map((slot) => slot.querySelector("img"));
}

function mark(choice) {
  $$("[data-choice]").forEach((button) => button.classList.toggle("mm-chosen", button.dataset.choice === choice));
}

function redraw() {
  if (draft) modeOf().draw();
  $("[data-do=undo]").disabled = !steps.length;
  $$(".mm-slot").forEach((slot, i) => {
    slot.classList.toggle("mm-unsafe", unsafe.has(i));
    press(slot.querySelector(".mm-flag"), unsafe.has(i));
  });
  keepDraft();
}

function edit(next) {
  if (shownAt === null || busy) return;
  say("");
  steps.push(draft);
  draft = next;
  redraw();
}

function undo() {
  if (!steps.length || busy) return;
  say("");
  draft = steps.pop();
  redraw();
}

function flag(i) {
  if (shownAt === null || busy || i >= question.images.length) return;
  unsafe.has(i) ? unsafe.delete(i) : unsafe.add(i);
  arm(false);
  redraw();
}

function arm(on) {
  flagging = on;
  card.classList.toggle("mm-flagging", on);
}

async function working(task) {
  if (busy) return;
  busy = true;
  card.classList.add("mm-busy");
  try {
    await task();
  } catch (error) {
    if (error.status === 401) { state = { ...state, name: null, mode: state?.mode ?? "pair" }; welcome(); }
    else if (!stop.signal.aborted) { draw(await insist("api/state", undefined, "The server does not answer. Trying again…")); say(error.message); }
  } finally {
    busy = false;
    card.classList.remove("mm-busy");
  }
}

function choose(choice, value = null, more = {}) {
  if (card.dataset.screen !== "rate" || busy || (shownAt === null && choice !== "skip")) return;
  say("");
  if (!more.timeout) missed = 0;
  const seconds = shownAt === null ? 0 : (performance.now() - shownAt) / 1000;
  const vote = { vote_id: randomId(), task: question.task, choice, seconds: Math.min(seconds, 86400), unsafe: [...unsafe], value, ...more };
  mark(choice);
  working(() => send(vote));
}

function save() {
  if (!draft || card.dataset.screen !== "rate" || shownAt === null || busy) return;
  modeOf().finish?.(true);
  const missing = modeOf().missing();
  if (missing) say(missing);
  else choose("save", modeOf().value());
}

function randomId() { // crypto.randomUUID is missing where the page comes over plain http from another machine
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function send(vote) {
  keep({ vote, name: state.name });
  try {
    const fresh = await insist("api/vote", vote, "Not saved yet. Trying again…");
    keep(null);
    remember(draftKey(vote.task), null);
    keepPace();
    draw(fresh);
  } catch (error) {
    if (error.status !== 401) keep(null);
    throw error;
  }
}

function keep(pending) {
  try {
    if (pending) localStorage.setItem(PENDING, JSON.stringify(pending));
    else localStorage.removeItem(PENDING);
  } catch (error) { /* a private window without storage */ }
}

function kept() {
  try { return JSON.parse(localStorage.getItem(PENDING)); } catch (error) { return null; }
}

function back() {
  if (!["rate", "done"].includes(card.dataset.screen) || busy) return;
  const before = past ? `?before=${question.number}` : "";
  working(async () => {
    const earlier = (await insist("api/back" + before, undefined, "The server does not answer. Trying again…")).question;
    if (earlier) await show(earlier, true);
    else say("This is your first answer.");
  });
}

function forward() {
  if (!past || busy) return;
  say("");
  working(async () => draw(await insist("api/state", undefined, "The server does not answer. Trying again…")));
}

function logout() {
  if (busy) return;
  working(async () => draw(await insist("api/logout", {}, "The server does not answer. Trying again…")));
}

async function byLink() {
  // a link's token logs in at once, and is gone from the address before anybody sees it or copies it
  const token = new URLSearchParams(location.search).get("token");
  if (!token) return null;
  history.replaceState(null, "", location.pathname);
  try {
    return await insist("api/login", { token }, "The server does not answer. Trying again…");
  } catch (error) {
    $(".mm-wrong").textContent = error.message; // below the name, which may be given instead
    return null;
  }
}

async function enter(fresh) {
  // a vote that a reload or an outage left unsent goes first
  const pending = kept();
  if (fresh.name && pending?.name === fresh.name) {
    state = fresh;
    await send(pending.vote);
  } else draw(fresh);
}

card.addEventListener("click", (event) => {
  const summary = event.target.closest("summary");
  if (summary) {
    event.preventDefault();
    summary.blur();
    toggleExamples();
  }
  const button = event.target.closest("button");
  if (!button) return;
  const { choice, do: action } = button.dataset;
  const slot = $$(".mm-slot").indexOf(button.closest(".mm-slot"));
  if (button.type !== "submit") button.blur(); // so that the space bar does not press it again
  if (button.classList.contains("mm-flag")) flag(slot);
  else if (button.classList.contains("mm-example")) enlarge(button);
  else if (button.classList.contains("mm-picture")) { if (shownAt !== null && !busy) modeOf().picture?.(slot, event); }
  else if (choice) choose(choice);
  else if (action) ({ back, return: forward, logout, undo, save, goon: goOn })[action]();
  else if (draft && shownAt !== null && !busy) modeOf().click?.(button);
}, { signal: stop.signal });

$(".mm-welcome").addEventListener("submit", (event) => {
  event.preventDefault();
  $(".mm-wrong").textContent = "";
  working(async () => {
    try {
      const fresh = await call("api/login", { name: $("#mm-name").value, password: $("#mm-password").value });
      $("#mm-password").value = "";
      await enter(fresh);
    } catch (error) {
      $(".mm-wrong").textContent = isOutage(error) ? "The server does not answer. Please try again." : error.message;
    }
  });
}, { signal: stop.signal });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.repeat && !(draft && modeOf().repeats)) return;
  if (event.target.closest?.("input, textarea, select, [contenteditable]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (["Enter", " "].includes(key) && event.target.closest?.("button, summary")) return; // which it presses
  if (key === "Enter" && !event.repeat) goOn(); // from a break
  if (["rate", "done"].includes(card.dataset.screen) && react(key, event)) event.preventDefault(); // arrows would scroll
}, { signal: stop.signal });

// whether the key meant something
function react(key, event) {
  const rating = card.dataset.screen === "rate";
  if (rating && flagging && key !== "b" && key !== "s") {
    arm(false);
    if (/^[1-9]$/.test(key)) flag(Number(key) - 1);
    return true;
  }
  const choice = key === "s" ? "skip" : modeOf().choices?.[key];
  if (choice && !event.repeat) choose(choice);
  else if (key === "b" && !event.repeat) back();
  else if (key === "Escape") forward();
  else if (key === "e" && !event.repeat) toggleExamples();
  else if (rating && key === "u" && !event.repeat) question.images.length > 1 ? arm(true) : flag(0);
  else if (rating && draft && key === "Enter" && !event.repeat) save();
  else if (rating && draft && key === "Backspace" && !event.repeat) undo();
  else return !!(rating && draft && shownAt !== null && !busy && modeOf().key(key, event));
  return true;
}

Object.values(MODES).forEach((mode) => mode.bind?.(stop.signal));
working(async () => enter((await byLink()) ?? (await insist("api/state", undefined, "The server does not answer. Trying again…"))));
