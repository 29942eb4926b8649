// Build elements. Text always becomes a text node: nothing on this page reads a string as HTML.

export const byId = (id) => document.getElementById(id);

/** Create an element; attributes that are null or false are left out, `on...` are listeners. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Create an element of an SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children);
  return node;
}

/** Tell a screen reader something, without moving the focus. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Return a function that runs `draw` at most once for each frame. */
export function framed(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}

/** Write a text so that its spaces and line ends can be seen. */
export function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, (run) => "␣".repeat(run.length));
}
