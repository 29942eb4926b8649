// The dial: how much of the model a request may use. One, or two to compare.

import { byId, element } from "./dom.js";

const LEAST = 0.05; // where the server does not say from where the model was calibrated
const HALF = 0.5; // where the dial stands at first: the full model would use all of itself for each token

export class Dials {
  constructor() {
    this.sides = [this.side("A", HALF), this.side("B", 1)];
    byId("dials").append(...this.sides.map((side) => side.node));
    this.compare = byId("compare");
    this.compare.addEventListener("change", () => this.show());
    this.show();
  }

  side(name, value) {
    const id = `dial-${name.toLowerCase()}`;
    const label = element("label", { for: id });
    const slider = element("input", { type: "range", id, min: LEAST, max: 1, step: 0.01, value });
    const output = element("span", { class: "value", "aria-hidden": "true" });
    const auto = element("input", { type: "checkbox" });
    const autoLabel = element("label", { class: "check", title: "The server lowers the dial while it is busy" }, auto, " auto");
    const side = { name, label, slider, output, auto, autoLabel, node: element("div", { class: "dial" }, label, slider, output, autoLabel) };
    slider.addEventListener("input", () => this.show());
    auto.addEventListener("change", () => this.show());
    return side;
  }

  /** Take over what the chosen model can do. `model` is null while none is known. */
  setModel(model, auto) {
    const another = model?.name !== this.model?.name;
    this.model = model;
    this.offersAuto = Boolean(auto);
    const least = Math.ceil((model?.dials?.[0] ?? LEAST) * 100) / 100;
    for (const { slider } of this.sides) slider.min = String(least);
    if (another && typeof model?.dial === "number") this.sides[0].slider.value = String(model.dial);
    if (another && this.sides[0].slider.valueAsNumber > 0.75) this.sides[1].slider.value = String(HALF);
    this.show();
  }

  show() {
    const fixed = this.model?.calibrated === false;
    const both = this.comparing;
    this.compare.disabled = fixed;
    for (const [place, side] of this.sides.entries()) {
      side.node.hidden = place > 0 && !both;
      side.label.textContent = both ? side.name : "Compute";
      side.slider.setAttribute("aria-label", both ? `Compute of ${side.name}` : "Compute");
      side.autoLabel.hidden = !this.offersAuto || fixed;
      side.auto.setAttribute("aria-label", both ? `Compute of ${side.name} is set by the server` : "Compute is set by the server");
      side.slider.disabled = fixed || this.isAuto(side);
      side.output.textContent = fixed ? "–" : this.isAuto(side) ? "auto" : side.slider.valueAsNumber.toFixed(2);
      side.slider.setAttribute("aria-valuetext", side.output.textContent);
      if (fixed) side.slider.setAttribute("aria-describedby", "reason");
      else side.slider.removeAttribute("aria-describedby");
    }
    const reason = byId("reason");
    reason.hidden = !fixed;
    reason.textContent = fixed ? `${this.model.name} has no dial yet: it is not calibrated. “adaptive calibrate” gives it one; then start the server again.` : "";
  }

  isAuto(side) {
    return this.offersAuto && side.auto.checked;
  }

  get comparing() {
    return this.compare.checked && this.model?.calibrated !== false;
  }

  /** Return for each answer to ask for: its side, the field of the request, and its name for people. */
  get chosen() {
    if (this.model?.calibrated === false) return [{ side: "", compute: undefined, name: "no dial" }];
    const sides = this.comparing ? this.sides : this.sides.slice(0, 1);
    return sides.map((side) => {
      const compute = this.isAuto(side) ? "auto" : side.slider.valueAsNumber;
      return { side: this.comparing ? side.name : "", compute, name: compute === "auto" ? "compute auto" : `compute ${compute.toFixed(2)}` };
    });
  }
}
