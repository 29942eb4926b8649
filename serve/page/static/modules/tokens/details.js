// The chosen token: its figures, the experts and heads of each layer, and the tokens that could have stood in its place.

import { announce, byId, element, framed, svg, visible } from "../dom.js";
import { formatMilliseconds, milliseconds, share } from "./measures.js";

const CELL = 10;
const WIDEST = 80; // pixels of a strip
const percent = (part) => (part >= 0.995 || part === 0 || part >= 0.1 ? `${Math.round(part * 100)} %` : part < 0.001 ? "< 0.1 %" : `${(part * 100).toFixed(1)} %`);

const END = "(end of text)"; // the token that ends a text; one without text may also be a part of a character

const nameOf = (token) => visible(token.text || token.token || "") || (token.token === "" ? END : "(no text of its own)");

export class Details {
  /** `changed(answer, index)` is called when another token is shown. */
  constructor(changed) {
    this.changed = changed;
    this.answer = null;
    this.index = 0;
    this.pinned = false;
    this.draw = framed(() => this.show());
    const scrubber = byId("scrubber");
    scrubber.addEventListener("input", () => this.select(this.answer, scrubber.valueAsNumber, { pin: true, reveal: true }));
    byId("previous").addEventListener("click", () => this.move(-1));
    byId("next").addEventListener("click", () => this.move(1));
    byId("unpin").addEventListener("click", () => {
      this.release();
      byId("scrubber").focus();
    });
  }

  /** Choose a token. `pin`: the pointer and new tokens no longer change it; `speak`: say it to a screen reader. */
  select(answer, index, { pin = false, reveal = false, speak = false } = {}) {
    if (!answer?.spans[index]) return;
    this.mark(false);
    this.answer = answer;
    this.index = index;
    this.pinned ||= pin;
    this.mark(true);
    if (reveal) answer.spans[index].scrollIntoView({ block: "nearest" });
    if (speak) announce(describe(answer, index));
    this.draw();
  }

  /** Follow the newest token, unless one is pinned. */
  follow(answer) {
    if (!this.pinned && answer.spans.length) this.select(answer, answer.spans.length - 1);
    if (answer === this.answer) this.show(); // in this frame; at least the scrubber is longer now
  }

  move(by, options = { reveal: true }) {
    if (!this.answer) return;
    const index = Math.max(0, Math.min(this.answer.spans.length - 1, this.index + by));
    this.select(this.answer, index, { pin: true, speak: true, ...options });
  }

  release() {
    this.pinned = false;
    this.draw();
  }

  /** Forget the token, as in a new conversation. */
  clear() {
    this.mark(false);
    this.answer = null;
    this.pinned = false;
    this.draw();
  }

  mark(on) {
    this.answer?.spans[this.index]?.classList.toggle("on", on);
  }

  show() {
    const { answer, index } = this;
    byId("token-none").hidden = answer !== null;
    byId("token-some").hidden = answer === null;
    byId("sheet-text").textContent = answer ? `${nameOf(answer.tokens[index])}   ${summary(answer.tokens[index])}` : "Token details";
    if (!answer) return this.changed(null, 0);
    const token = answer.tokens[index];
    const scrubber = byId("scrubber");
    scrubber.max = String(answer.spans.length - 1);
    scrubber.value = String(index);
    scrubber.setAttribute("aria-valuetext", describe(answer, index));
    byId("token-text").textContent = nameOf(token);
    byId("token-place").textContent = `${index + 1} of ${answer.tokens.length}${answer.side ? ` in ${answer.side}` : ""}`;
    byId("unpin").hidden = !this.pinned;
    byId("facts").replaceChildren(...facts(token, answer.shape).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    this.layers(token.compute, answer.shape);
    this.alternatives(token);
    return this.changed(answer, index);
  }

  layers(compute, shape) {
    const table = byId("layers");
    table.hidden = !compute;
    if (!compute) return;
    const body = table.tBodies[0];
    const count = compute.experts?.length ?? shape.layers;
    while (body.rows.length > count) body.deleteRow(-1);
    while (body.rows.length < count) {
      const row = body.appendChild(element("tr", {}, element("th", { scope: "row" })));
      row.append(cell(), cell());
    }
    const run = new Set(compute.layers_run ?? []);
    for (const [layer, row] of [...body.rows].entries()) {
      row.className = run.has(layer) ? "" : "skipped";
      row.cells[0].textContent = compute.exit_layer === layer ? `${layer} exit` : String(layer);
      const none = run.has(layer) ? "–" : "skipped";
      strip(row.cells[1], compute.experts?.[layer] ?? [], shape.experts, none);
      strip(row.cells[2], compute.heads?.[layer] ?? [], shape.heads, none);
      row.title = compute.windows?.[layer] ? `looks back at most ${compute.windows[layer]} tokens` : "";
    }
  }

  alternatives(token) {
    const own = token.token ?? token.text;
    const list = token.alternatives.map((other) => ({ ...other, taken: false }));
    const taken = list.find((other) => other.token === own);
    if (taken) taken.taken = true;
    else if (list.length && token.logprob !== null) list.push({ token: own, logprob: token.logprob, taken: true });
    list.sort((a, b) => b.logprob - a.logprob);
    byId("alternatives-none").hidden = list.length > 0;
    byId("alternatives").replaceChildren(
      ...list.map(({ token: text, logprob, taken }) => {
        const bar = element("i", { "aria-hidden": "true" });
        bar.style.width = `${Math.max(0.5, Math.exp(logprob) * 100).toFixed(1)}%`;
        return element("li", { class: taken ? "taken" : null }, element("code", { title: visible(text) || END }, visible(text) || END), bar, element("span", {}, percent(Math.exp(logprob)), taken ? element("span", { class: "hidden" }, ", taken") : ""));
      }),
    );
  }
}

function cell() {
  const picture = svg("svg", { class: "strip", "aria-hidden": "true" }, svg("path", { class: "not" }), svg("path", { class: "has" }));
  return element("td", {}, picture, element("span", { class: "ids" }));
}

/** Draw which of `count` experts or heads were used, and write their numbers, or `none`. */
function strip(td, used, count, none) {
  const [picture, ids] = td.children;
  const set = new Set(used);
  const draw = (wanted) => Array.from({ length: count }, (_, i) => (set.has(i) === wanted ? `M${i * CELL},0h${CELL - 1}v${CELL}h${1 - CELL}z` : "")).join("");
  const width = Math.max(1, count * CELL);
  picture.classList.toggle("none", used.length === 0);
  picture.setAttribute("viewBox", `0 0 ${width} ${CELL}`);
  picture.setAttribute("width", String(Math.min(width, WIDEST)));
  picture.setAttribute("preserveAspectRatio", "none");
  picture.children[0].setAttribute("d", draw(false));
  picture.children[1].setAttribute("d", draw(true));
  ids.textContent = used.length === 0 ? none : used.length === count && count > 3 ? `all ${count}` : used.length > 8 ? `${used.length} of ${count}` : used.join(" ");
}

function facts(token, shape) {
  const { compute } = token;
  const mean = share(token);
  const time = milliseconds(token);
  return [
    ["Compute", mean === null ? "–" : `${Math.round(mean * 100)} %`],
    ["Layers", compute?.layers_run ? `${compute.layers_run.length} of ${shape.layers}` : "–"],
    ["Time", time === null ? "–" : formatMilliseconds(time)],
    ["Probability", token.logprob === null ? "–" : percent(Math.exp(token.logprob))],
  ];
}

function summary(token) {
  const { compute } = token;
  const mean = share(token);
  const time = milliseconds(token);
  const parts = [];
  if (mean !== null) parts.push(`${Math.round(mean * 100)} % compute`);
  if (compute?.layers_run) parts.push(`${compute.layers_run.length} layers`);
  if (time !== null) parts.push(formatMilliseconds(time));
  return parts.join(", ");
}

/** Describe a token for a screen reader, in one line. */
export function describe(answer, index) {
  const token = answer.tokens[index];
  const { compute } = token;
  const parts = [`“${nameOf(token)}”`, `token ${index + 1} of ${answer.tokens.length}`];
  if (summary(token)) parts.push(summary(token));
  if (compute?.exit_layer !== null && compute?.exit_layer !== undefined) parts.push(`left after layer ${compute.exit_layer}`);
  const used = (compute?.experts ?? []).reduce((sum, list) => sum + list.length, 0);
  if (used && compute.layers_run?.length) parts.push(`${(used / compute.layers_run.length).toFixed(1)} experts a layer`);
  return parts.join(", ");
}
