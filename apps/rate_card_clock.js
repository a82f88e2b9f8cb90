// The time that a question may take, and the rater's own: a bar that runs out and skips, and a break.

const AWAY = 600000; // after a pause of ten minutes a session begins anew
const MISSED = 2; // so many questions in a row that nobody answered: nobody is there
let missed = 0;
let clock = 0;

function stopClock() {
  clearInterval(clock);
}

function startClock() {
  stopClock();
  const limit = past ? 0 : 1000 * (state.time_limit ?? 0);
  $(".mm-clock").hidden = !state.time_limit;
  $(".mm-clock").classList.toggle("mm-still", !limit);
  if (!limit) return;
  const key = `mmrlhf-clock ${state.name}`; // a reload gives no time back
  if (recall(key)?.task !== question.task) remember(key, { task: question.task, began: Date.now() });
  const { began } = recall(key);
  const run = () => {
    const left = Math.max(0, 1 - (Date.now() - began) / limit);
    $(".mm-clock i").style.transform = `scaleX(${left})`;
    $(".mm-clock").classList.toggle("mm-soon", left < 0.25);
    if (stop.signal.aborted) return stopClock(); // another card is there
    if (left || busy) return;
    stopClock();
    missed += 1;
    choose("skip", null, { timeout: true });
  };
  clock = setInterval(run, 100);
  run();
}

// whether a break is due before the next question, and why
function breakDue() {
  if (missed >= MISSED) return "away";
  if (!state.session_minutes) return "";
  const key = `mmrlhf-session ${state.name}`;
  const now = Date.now();
  const known = recall(key);
  const session = known && now - known.last < AWAY ? { ...known, last: now } : { since: now, last: now };
  remember(key, session);
  return now - session.since >= 60000 * state.session_minutes ? "long" : "";
}

function rest(why) {
  question = null;
  const count = state.answered;
  $(".mm-break .mm-title").textContent = why === "away" ? "Are you still there?" : "Time for a break";
  const reason = why === "away"
    ? "The time for the last questions was over before you answered."
    : "You have been rating for a while: a pause keeps your eye fresh.";
  $(".mm-break .mm-lead").textContent = `${reason} ${count === 1 ? "1 answer is" : `${count} answers are`} saved. You can go on whenever you like.`;
  screen("break");
}

function goOn() {
  if (busy || card.dataset.screen !== "break") return;
  missed = 0;
  remember(`mmrlhf-session ${state.name}`, null);
  working(async () => draw(await insist("api/state", undefined, "The server does not answer. Trying again…")));
}
