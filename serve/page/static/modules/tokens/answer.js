// One answer: its tokens as shaded pieces of text, its figures, and what went wrong.

import { element, framed } from "../dom.js";
import { Joiner } from "./joiner.js";
import { formatMilliseconds, share } from "./measures.js";

const places = new WeakMap(); // span of a token -> [answer, index]

/** Return the answer and the index of the token at an element, or null. */
export const placeOf = (node) => (node instanceof Element ? places.get(node.closest(".t")) ?? null : null);

const FINISH = { stop: "ended by itself", length: "reached the most tokens", cancelled: "stopped", eos: "ended by itself", error: "broken off" };

export class Answer {
  /** `scale()` gives the present scale; `grew(answer)` is called in the frame in which tokens were added. */
  constructor({ side, model, dial, number, shape, scale, grew }) {
    this.side = side;
    this.model = model;
    this.number = number;
    this.shape = { layers: shape.layers ?? 0, experts: shape.experts ?? 0, heads: shape.heads ?? 0, most: 1 };
    this.scale = scale;
    this.grew = grew;
    this.joiner = new Joiner();
    this.spans = [];
    this.changed = 0; // the first token whose span is not up to date
    this.busy = true;
    this.started = performance.now();
    this.first = null;
    this.last = null;
    this.shown = framed(() => this.flush());
    this.dialName = element("span", {}, dial);
    this.body = element("div", { class: "text", tabindex: "0", role: "group", "data-busy": true, "aria-busy": "true" });
    this.bar = element("i");
    this.foot = element("p", { class: "foot" });
    this.used = element("div", { class: "used", "aria-hidden": "true", hidden: true }, this.bar);
    this.node = element("div", { class: "answer" }, element("p", { class: "who" }, element("b", {}, side ? `${side}  ${model}` : model), this.dialName), this.body, this.used, this.foot);
    this.name();
  }

  /** Take in the choice of a chunk; it is shown with the next frame. */
  take(choice) {
    const before = this.tokens.length;
    const first = this.joiner.take(choice);
    if (first === this.tokens.length) return;
    this.changed = Math.min(this.changed, first);
    if (this.tokens.length > before) this.last = performance.now();
    this.first ??= this.last;
    for (const token of this.tokens.slice(first)) this.stretch(token.compute);
    this.shown();
  }

  get tokens() {
    return this.joiner.tokens;
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  /** Let a record be right where the properties of the model said less. */
  stretch(compute) {
    if (!compute) return;
    const { shape } = this;
    const most = (lists) => (lists ?? []).reduce((high, ids) => ids.reduce((a, b) => Math.max(a, b + 1), high), 0);
    shape.most = Math.max(shape.most, ...(compute.experts ?? []).map((ids) => ids.length));
    shape.layers = Math.max(shape.layers, compute.experts?.length ?? 0);
    shape.experts = Math.max(shape.experts, most(compute.experts));
    shape.heads = Math.max(shape.heads, most(compute.heads));
  }

  flush() {
    const begin = this.changed;
    if (begin === this.tokens.length) return;
    this.changed = this.tokens.length;
    const scale = this.scale();
    for (let i = begin; i < this.spans.length; i++) {
      this.spans[i].textContent = this.tokens[i].text;
      this.paint(i, scale);
    }
    for (let i = this.spans.length; i < this.tokens.length; i++) {
      const span = document.createElement("span");
      const { text } = this.tokens[i];
      span.className = classes(text, scale.level(this.tokens[i]));
      span.textContent = text;
      places.set(span, [this, i]);
      // A line is a block of its own, so that a new token lays out its own line and not the whole text.
      if (!this.line || (i > 0 && this.tokens[i - 1].text.endsWith("\n"))) this.line = this.body.appendChild(element("div", { class: "line" }));
      this.line.append(span);
      this.spans.push(span);
    }
    this.name();
    this.figures();
    this.grew(this, begin);
  }

  /** Shade all tokens anew. */
  shade() {
    const scale = this.scale();
    for (let i = 0; i < this.spans.length; i++) this.paint(i, scale);
  }

  paint(i, scale) {
    const span = this.spans[i];
    const marks = ["on", "differs"].filter((mark) => span.classList.contains(mark));
    span.className = [classes(this.tokens[i].text, scale.level(this.tokens[i])), ...marks].join(" ");
  }

  /** End the answer: `finish` says why, `usage` is the server's. */
  end(finish, usage) {
    this.busy = false;
    this.finish = finish;
    this.usage = usage?.compute ?? null;
    this.body.removeAttribute("data-busy");
    this.body.removeAttribute("aria-busy");
    if (this.usage?.dial !== undefined && this.usage.dial !== null) this.dialName.textContent = `compute ${this.usage.dial.toFixed(2)}`;
    this.flush();
    this.name();
    this.figures();
  }

  /** Show a fault below the text, with a button that asks again where that helps. */
  fail([title, text], again) {
    this.node.append(
      element("div", { class: "fault", role: "alert" }, element("p", {}, element("b", {}, title), text), again && element("button", { type: "button", onclick: again }, "Try again")),
    );
  }

  name() {
    const which = this.side ? `Answer ${this.number} ${this.side}` : `Answer ${this.number}`;
    this.title = `${which}, ${this.tokens.length} ${this.tokens.length === 1 ? "token" : "tokens"}`;
    if (!this.busy || this.spans.length < 2) this.body.setAttribute("aria-label", `${which}. The arrow keys move from token to token.`);
  }

  /** Mean share of the dense FLOPs, or null. */
  get share() {
    if (typeof this.usage?.share === "number") return this.usage.share;
    const shares = this.tokens.map(share).filter((value) => value !== null);
    return shares.length ? shares.reduce((sum, value) => sum + value, 0) / shares.length : null;
  }

  /** Milliseconds between two tokens, as this page saw them. */
  get pace() {
    return this.tokens.length > 1 ? (this.last - this.first) / (this.tokens.length - 1) : null;
  }

  figures() {
    if (this.finish === "error" && this.tokens.length === 0) {
      this.body.hidden = true;
      return;
    }
    const usage = this.usage ?? {};
    const mean = this.share;
    const parts = [];
    const figure = (value, words) => parts.push(element("span", {}, element("b", {}, value), ` ${words}`));
    if (mean !== null) figure(`${Math.round(mean * 100)} %`, "of dense compute");
    if (typeof usage.experts_per_token === "number") figure(usage.experts_per_token.toFixed(1), "experts a layer");
    if (typeof usage.layers_per_token === "number") figure(usage.layers_per_token.toFixed(1), "layers");
    figure(String(this.tokens.length), this.tokens.length === 1 ? "token" : "tokens");
    if (typeof usage.milliseconds_per_token === "number") figure(formatMilliseconds(usage.milliseconds_per_token), "a token");
    else if (this.pace !== null) figure((1000 / this.pace).toFixed(0), "tokens/s");
    if (this.first !== null) figure(formatMilliseconds(this.first - this.started), "to the first");
    if (this.finish) parts.push(element("span", {}, FINISH[this.finish] ?? this.finish));
    this.foot.replaceChildren(...parts);
    this.used.hidden = mean === null;
    if (mean !== null) this.bar.style.width = `${Math.min(100, mean * 100).toFixed(1)}%`;
  }
}

function classes(text, level) {
  const shade = level === null ? "t" : `t s${level}`;
  if (text === "") return `${shade} part`;
  return /^[ ]*\n/.test(text) ? `${shade} nl` : shade;
}

/** Compare two finished answers: mark the first token that differs, and say what the lower dial saved. */
export function verdict(a, b) {
  const at = a.tokens.findIndex((token, i) => token.text !== b.tokens[i]?.text);
  const differs = at === -1 && a.tokens.length === b.tokens.length ? null : at === -1 ? a.tokens.length : at;
  for (const answer of differs === null ? [] : [a, b]) answer.spans[differs]?.classList.add("differs");
  const words = [differs === null ? "Both texts are the same." : differs === 0 ? "The texts differ from the first token." : `The same text up to token ${differs}; the first that differs is underlined twice.`];
  if (a.share !== null && b.share !== null && a.share > 0 && b.share > 0) {
    const [less, more] = a.share <= b.share ? [a, b] : [b, a];
    words.push(`${less.side} took ${Math.round((1 - less.share / more.share) * 100)} % less compute for each token than ${more.side}.`);
  }
  return words.join(" ");
}
