// A heat map over the tokens of an answer. Only the visible columns are drawn; a table says the same in numbers.

import { element, framed } from "../dom.js";

const GUTTER = 30; // pixels for the names of the rows
const WIDEST = 12;
const NARROWEST = 3;
const TALL = 230; // pixels that the rows of a map share

export class Heatmap {
  /**
   * `view(answer)` returns {rows, names: [[row, text]], rules: [row], value(token, row), sentence, table: {columns, rows}}:
   * a value is 0 to 1, null where the layer did not run. `choose(answer, index)` is called for the column under the pointer.
   */
  constructor({ title, view, choose, control = null }) {
    this.view = view;
    this.answer = null;
    this.index = null;
    this.canvas = element("canvas", { role: "img" });
    this.spacer = element("div", { class: "spacer" });
    this.window = element("div", { class: "window", tabindex: "0", role: "group", "aria-label": `${title}, scrolls sideways` }, this.canvas, this.spacer);
    this.table = element("table");
    this.more = element("details", {}, element("summary", {}, "As a table"), element("div", { class: "scroll-x" }, this.table));
    this.title = title;
    this.node = element("figure", { class: "map" }, element("figcaption", {}, title, control ?? ""), this.window, this.more);
    this.draw = framed(() => this.paint());
    this.window.addEventListener("scroll", this.draw, { passive: true });
    this.more.addEventListener("toggle", () => this.fillTable());
    new ResizeObserver(this.draw).observe(this.window);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.draw);
    for (const kind of ["pointermove", "click"]) {
      this.canvas.addEventListener(kind, (event) => {
        const index = this.column(event.offsetX);
        if (index !== null) choose(this.answer, index, kind === "click");
      });
    }
  }

  /** Show an answer, with the column of one token marked. */
  show(answer, index) {
    const another = answer !== this.answer;
    this.answer = answer;
    this.index = index;
    if (another) this.window.scrollLeft = 0;
    this.reveal = true;
    this.draw();
  }

  column(x) {
    if (!this.answer || x < GUTTER) return null;
    const index = Math.floor((x - GUTTER + this.window.scrollLeft) / this.width);
    return index < this.answer.spans.length ? index : null;
  }

  paint() {
    const { answer, canvas } = this;
    if (!answer || this.window.clientWidth === 0) return;
    const view = this.view(answer);
    const count = answer.tokens.length;
    const room = this.window.clientWidth - GUTTER;
    this.width = Math.max(NARROWEST, Math.min(WIDEST, Math.floor(room / Math.max(count, 1))));
    const height = Math.max(3, Math.min(14, Math.floor(TALL / Math.max(view.rows, 1))));
    this.spacer.style.width = `${GUTTER + count * this.width}px`;
    if (this.reveal) {
      this.reveal = false;
      const x = this.index * this.width;
      if (x < this.window.scrollLeft || x + this.width > this.window.scrollLeft + room) this.window.scrollLeft = x - room / 2;
    }
    const ratio = devicePixelRatio || 1;
    const tall = view.rows * height + 2;
    const pixels = [Math.round(this.window.clientWidth * ratio), Math.round(tall * ratio)];
    if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) {
      [canvas.width, canvas.height] = pixels;
      canvas.style.width = `${this.window.clientWidth}px`;
      canvas.style.height = `${tall}px`;
    }
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const [heat, none, quiet, ink, paper] = ["--heat", "--none", "--quiet", "--ink", "--paper"].map(colour);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, canvas.width, tall);
    const gap = height > 5 ? 1 : 0;
    const left = this.window.scrollLeft;
    const last = Math.min(count, Math.ceil((left + room) / this.width));
    for (let i = Math.floor(left / this.width); i < last; i++) {
      const x = GUTTER + i * this.width - left;
      for (let row = 0; row < view.rows; row++) {
        const value = view.value(answer.tokens[i], row);
        pen.fillStyle = value === null ? none : heat;
        // Skipped is grey, narrow and unlike any step of the colour: told apart without hues.
        pen.globalAlpha = value === null ? 0.9 : 0.07 + 0.93 * value;
        if (value === null) pen.fillRect(x, row * height + height / 2, this.width - 1, 1);
        else pen.fillRect(x, row * height, this.width - (this.width > 5 ? 1 : 0), height - gap);
      }
    }
    pen.globalAlpha = 1;
    pen.fillStyle = quiet;
    for (const row of view.rules) pen.fillRect(GUTTER, row * height - 0.5, Math.min(room, count * this.width - left), 0.5);
    if (this.index !== null && this.index < count) {
      pen.strokeStyle = ink;
      pen.lineWidth = 1.5;
      pen.strokeRect(GUTTER + this.index * this.width - left - 0.75, 0.75, this.width + 0.5, view.rows * height);
    }
    pen.fillStyle = paper;
    pen.fillRect(0, 0, GUTTER - 1, tall);
    pen.fillStyle = quiet;
    pen.font = "10px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    let free = -10;
    for (const [row, text] of view.names) {
      const y = row * height + height / 2;
      if (y - free < 10) continue;
      pen.fillText(text, GUTTER - 5, Math.max(5, y));
      free = y;
    }
    if (!answer.busy || !canvas.hasAttribute("aria-label")) canvas.setAttribute("aria-label", `${this.title}: ${view.sentence}`);
    if (!answer.busy) this.fillTable();
  }

  /** Write the table, when it is open. */
  fillTable() {
    if (!this.more.open || !this.answer) return;
    const view = this.view(this.answer);
    const mark = `${this.answer.title} ${view.rows}`;
    if (this.filled === mark) return;
    this.filled = mark;
    const { columns, rows } = view.table();
    this.table.replaceChildren(
      element("thead", {}, element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows.map(([name, ...cells]) => element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((value) => element("td", {}, value))))),
    );
  }
}
