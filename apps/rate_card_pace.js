// How long the questions that are left will take at the rater's own pace: the median of the last answers, breaks left out.

const PACE_ANSWERS = 20; // the last so many
const PACE_LEAST = 5; // below, it says nothing
const PACE_BREAK = 120; // seconds: longer is no pace

const pace = [];
let pacedAt = performance.now();

function keepPace() {
  const now = performance.now();
  const seconds = (now - pacedAt) / 1000;
  pacedAt = now;
  if (seconds < PACE_BREAK) pace.push(seconds);
  if (pace.length > PACE_ANSWERS) pace.shift();
}

function timeLeft(questions) {
  if (pace.length < PACE_LEAST || questions < 1) return "";
  const median = [...pace].sort((a, b) => a - b)[Math.floor(pace.length / 2)];
  const minutes = (median * questions) / 60;
  if (minutes < 1) return "under a minute left";
  return minutes < 90 ? `about ${Math.round(minutes)} min left` : `about ${Math.round(minutes / 60)} h left`;
}
