// Keys in the text of an answer: from token to token, from line to line, to the ends.

/** Act on a key; `details` has the chosen token. */
export function walk(event, answer, details) {
  if (event.ctrlKey || event.metaKey || event.altKey || answer.spans.length === 0) return;
  if (event.key === "Escape" && details.pinned) {
    details.release();
    event.stopPropagation();
    return;
  }
  const at = details.answer === answer ? details.index : null;
  const to = target(event.key, answer.spans, at);
  if (to === null) return;
  event.preventDefault();
  details.select(answer, to, { pin: true, reveal: true, speak: true });
}

function target(key, spans, at) {
  const last = spans.length - 1;
  switch (key) {
    case "Home":
      return 0;
    case "End":
      return last;
    case "ArrowLeft":
      return at === null ? 0 : Math.max(0, at - 1);
    case "ArrowRight":
      return at === null ? 0 : Math.min(last, at + 1);
    case "ArrowUp":
      return at === null ? 0 : onLine(spans, at, -1);
    case "ArrowDown":
      return at === null ? 0 : onLine(spans, at, 1);
    default:
      return null;
  }
}

/** Return the token nearest to `at` on the line above (-1) or below (1). */
function onLine(spans, at, way) {
  const box = (i) => spans[i].getClientRects()[0] ?? spans[i].getBoundingClientRect();
  const here = box(at);
  let best = at;
  let top = null;
  for (let i = at + way; i >= 0 && i < spans.length; i += way) {
    const other = box(i);
    if (Math.abs(other.top - here.top) < 3) continue;
    if (top !== null && Math.abs(other.top - top) >= 3) break;
    top = other.top;
    if (best === at || Math.abs(other.left - here.left) < Math.abs(box(best).left - here.left)) best = i;
  }
  return best;
}
