// The two heat maps of an answer: layers over tokens, and experts over tokens.

import { byId, element } from "../dom.js";
import { Heatmap } from "./heatmap.js";

const MANY = 160; // rows that one map can still show
const percent = (part, all) => (all ? `${Math.round((part / all) * 100)} %` : "–");

export class Maps {
  /** `choose(answer, index, pin)` is called for the token under the pointer. */
  constructor(choose) {
    this.layer = element("select", { "aria-label": "Layer of the experts" });
    this.layer.addEventListener("change", () => this.units.draw());
    this.layers = new Heatmap({ title: "Layers × tokens", view: layersView, choose, control: element("span", { class: "note" }, "strong: many experts, line: skipped") });
    this.units = new Heatmap({ title: "Experts × tokens", view: (answer) => expertsView(answer, this.chosen(answer)), choose, control: this.layer });
    byId("maps").append(this.layers.node, this.units.node);
  }

  show(answer, index) {
    byId("maps").hidden = !answer?.tokens.some((token) => token.compute);
    if (byId("maps").hidden) return;
    byId("maps-title").textContent = answer.title;
    this.units.node.hidden = answer.shape.experts === 0;
    this.options(answer.shape);
    this.layers.show(answer, index);
    this.units.show(answer, index);
  }

  /** Offer the layers; all together only where they fit. */
  options({ layers, experts }) {
    const mark = `${layers} ${experts}`;
    if (this.offered === mark) return;
    this.offered = mark;
    const all = layers * experts <= MANY ? [element("option", { value: "all" }, "all layers")] : [];
    this.layer.replaceChildren(...all, ...Array.from({ length: layers }, (_, i) => element("option", { value: i }, `layer ${i}`)));
  }

  chosen(answer) {
    return this.layer.value === "all" ? Array.from({ length: answer.shape.layers }, (_, i) => i) : [Number(this.layer.value)];
  }
}

/** A row for each layer: how much of it ran. */
function layersView(answer) {
  const { layers, experts, most } = answer.shape;
  const value = ({ compute }, row) => {
    if (!compute?.layers_run?.includes(row)) return null;
    return experts === 0 ? 1 : 0.15 + (0.85 * (compute.experts?.[row]?.length ?? 0)) / most;
  };
  const measured = () => answer.tokens.filter((token) => token.compute);
  const ran = (row) => measured().filter(({ compute }) => compute.layers_run.includes(row));
  return {
    rows: layers,
    names: Array.from({ length: layers }, (_, row) => [row, String(row)]),
    rules: [],
    value,
    get sentence() {
      const shares = Array.from({ length: layers }, (_, row) => `layer ${row} ran for ${percent(ran(row).length, measured().length)}`);
      return `${answer.title}; ${shares.join(", ")} of the tokens`;
    },
    table: () => ({
      columns: ["Layer", "Tokens that ran it", "Experts", "Heads", "Left after it"],
      rows: Array.from({ length: layers }, (_, row) => {
        const those = ran(row);
        const mean = (part) => (those.length ? (those.reduce((sum, { compute }) => sum + (compute[part]?.[row]?.length ?? 0), 0) / those.length).toFixed(2) : "–");
        const left = measured().filter(({ compute }) => compute.exit_layer === row).length;
        return [String(row), percent(those.length, measured().length), mean("experts"), mean("heads"), percent(left, measured().length)];
      }),
    }),
  };
}

/** A row for each expert of the chosen layers: whether the token used it. */
function expertsView(answer, chosen) {
  const { experts } = answer.shape;
  const value = ({ compute }, row) => {
    const layer = chosen[Math.floor(row / experts)];
    if (!compute?.layers_run?.includes(layer)) return null;
    return compute.experts?.[layer]?.includes(row % experts) ? 1 : 0;
  };
  const measured = () => answer.tokens.filter((token) => token.compute);
  const used = (layer, expert) => measured().filter(({ compute }) => compute.experts?.[layer]?.includes(expert)).length;
  const all = chosen.length > 1;
  return {
    rows: chosen.length * experts,
    names: all ? chosen.map((layer, i) => [i * experts, `${layer}`]) : Array.from({ length: experts }, (_, i) => [i, String(i)]),
    rules: all ? chosen.slice(1).map((_, i) => (i + 1) * experts) : [],
    value,
    get sentence() {
      return `${answer.title}, ${experts} experts in ${all ? `each of ${chosen.length} layers` : `layer ${chosen[0]}`}; the table below has the share of the tokens that used each`;
    },
    table: () => ({
      columns: ["Layer", ...Array.from({ length: experts }, (_, i) => `expert ${i}`)],
      rows: chosen.map((layer) => [String(layer), ...Array.from({ length: experts }, (_, i) => percent(used(layer, i), measured().length))]),
    }),
  };
}
