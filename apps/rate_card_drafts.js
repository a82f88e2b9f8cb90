// What a rater has begun to say, kept in the tab until it is saved: a reload does not lose it.

const remembered = new Map(); // where the browser keeps nothing

function remember(key, value) {
  remembered.set(key, value);
  try {
    if (value === null) sessionStorage.removeItem(key);
    else sessionStorage.setItem(key, JSON.stringify(value));
  } catch (error) { /* a private window without storage, or a full one */ }
}

function recall(key) {
  try { return JSON.parse(sessionStorage.getItem(key)) ?? remembered.get(key) ?? null; } catch (error) { return remembered.get(key) ?? null; }
}

const draftKey = (task) => `mmrlhf-draft ${state.name} ${task}`;

function keepDraft() {
  if (!question || past) return;
  const begun = steps.length || unsafe.size;
  remember(draftKey(question.task), begun ? { draft, steps: steps.slice(-50), unsafe: [...unsafe] } : null);
}

function restoreDraft(next) {
  const found = past ? null : recall(draftKey(next.task));
  if (!found) return;
  if (draft && found.draft) [draft, steps] = [found.draft, found.steps];
  unsafe = new Set(found.unsafe);
}
