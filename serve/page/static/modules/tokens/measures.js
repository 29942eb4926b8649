// What tokens are shaded by, and the scale from the least to the most of it.

export const LEVELS = 8;

const total = (lists) => (lists ?? []).reduce((sum, list) => sum + list.length, 0);
const percent = (share) => `${Math.round(share * 100)} %`;

/** Experts or heads in a token's layers, on average over the layers that it ran. */
const perLayer = (compute, part) => (compute?.[part] && compute.layers_run?.length ? total(compute[part]) / compute.layers_run.length : null);

export const share = (token) => (token.compute?.dense_flops ? token.compute.executed_flops / token.compute.dense_flops : null);
export const experts = (token) => perLayer(token.compute, "experts");
export const heads = (token) => perLayer(token.compute, "heads");
export const layersRun = (token) => token.compute?.layers_run?.length ?? null;
export const milliseconds = (token) => (token.compute?.seconds === undefined || token.compute.seconds === null ? null : token.compute.seconds * 1000);

export function formatMilliseconds(value) {
  if (value === 0) return "0 ms";
  return `${value < 1 ? value.toFixed(2) : value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** `step` is what the ends of the scale are rounded to, `most` its end; `skipsFirst`: the first token of an answer does not stretch it. */
export const MEASURES = [
  { id: "share", label: "compute", note: "of the dense FLOPs", value: share, format: percent, step: 0.05, most: 1 },
  { id: "experts", label: "experts", note: "a layer", value: experts, format: (value) => value.toFixed(1), step: 0.5 },
  { id: "layers", label: "layers run", note: "layers", value: layersRun, format: (value) => String(Math.round(value)), step: 1 },
  { id: "milliseconds", label: "time", note: "a token; the first one waits for the prompt", value: milliseconds, format: formatMilliseconds, step: 1, skipsFirst: true },
  { id: "surprise", label: "surprise", note: "bits: how unlikely the model found the token", value: (token) => (token.logprob === null ? null : Math.max(0, -token.logprob / Math.LN2)), format: (value) => value.toFixed(1), step: 1 },
];

/** A scale that grows with its values, to round ends, so that it seldom changes while a text is written. */
export class Scale {
  constructor(measure) {
    this.measure = measure;
    this.low = null;
    this.high = null;
  }

  /** Take in a token; returns whether the ends have moved. */
  add(token, index) {
    const value = this.measure.value(token);
    if (value === null || (this.measure.skipsFirst && index === 0)) return false;
    const { step, most = Infinity } = this.measure;
    // Routers cost a little: a token that uses all of the model is a little over the dense one.
    const low = Math.min(Math.floor(value / step + 1e-9) * step, most - step);
    const high = Math.min(Math.max(Math.ceil(value / step - 1e-9) * step, low + step), most);
    if (this.low !== null && low >= this.low && high <= this.high) return false;
    this.low = this.low === null ? low : Math.min(this.low, low);
    this.high = this.high === null ? high : Math.max(this.high, high);
    return true;
  }

  /** Return the step of the colour for a token, 0 to LEVELS - 1; null where nothing was measured. */
  level(token) {
    const value = this.measure.value(token);
    if (value === null || this.low === null) return null;
    const place = (value - this.low) / (this.high - this.low);
    return Math.max(0, Math.min(LEVELS - 1, Math.floor(place * LEVELS)));
  }
}
