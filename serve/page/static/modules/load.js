// The state of the server: asked for every two seconds while the page can be seen, more rarely while it does not answer.

import { call } from "./api.js";
import { announce, byId } from "./dom.js";

const EVERY = 2000;
const LONGEST = 10000;
const POINTS = 30;
const STATES = { ready: "ready", loading: "loading", draining: "shutting down", failed: "failed", away: "no answer", locked: "key needed", waiting: "connecting" };

export class Load {
  /** `changed(props)` is called with each answer; `locked()` where the server asks for a key. */
  constructor({ changed, locked }) {
    this.changed = changed;
    this.locked = locked;
    this.wait = EVERY;
    this.rates = [];
    this.state = "waiting";
    document.addEventListener("visibilitychange", () => document.hidden || this.ask());
  }

  /** Ask now, and again after a while. */
  async ask() {
    clearTimeout(this.timer);
    const turn = (this.turn = (this.turn ?? 0) + 1);
    try {
      const response = await call("props", { signal: AbortSignal.timeout(LONGEST) });
      const props = await response.json();
      if (turn !== this.turn) return;
      this.wait = EVERY;
      this.show(props);
      this.set(props.status in STATES ? props.status : "ready");
      this.changed(props);
    } catch (error) {
      if (turn !== this.turn) return;
      if (error.status === 401 || error.status === 403) {
        this.set("locked");
        this.locked();
      } else if (error.status === 503) this.set("loading");
      else this.set("away");
      this.wait = Math.min(LONGEST, this.wait * 1.5);
    }
    if (!document.hidden) this.timer = setTimeout(() => this.ask(), this.wait);
  }

  set(state) {
    const before = this.state;
    this.state = state;
    byId("status").dataset.state = state;
    byId("status-text").textContent = STATES[state];
    const banner = byId("banner");
    const words = {
      away: "The server does not answer. This page tries again by itself; what is written here stays.",
      draining: "The server shuts down: it finishes what it has begun, and takes no new request.",
      failed: "The engine of a model has failed. The server takes no request until it is started again; its log says why.",
      loading: "The server loads its models.",
    }[state];
    if (banner.textContent !== (words ?? "")) banner.textContent = words ?? "";
    banner.hidden = !words;
    if (before === "away" && state === "ready") announce("The server answers again.");
  }

  show({ load = {} }) {
    const known = (value, of) => (typeof value === "number" ? (typeof of === "number" ? `${value}/${of}` : String(value)) : "–");
    byId("running").textContent = known(load.running, load.max_batch);
    byId("waiting").textContent = known(load.waiting, load.max_queue);
    const rate = load.tokens_per_second;
    byId("throughput").textContent = typeof rate === "number" ? (rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en")) : "–";
    this.rates = [...this.rates, typeof rate === "number" ? rate : 0].slice(-POINTS);
    if (this.rates.length < 5) return;
    const most = Math.max(1, ...this.rates);
    const points = this.rates.map((value, i) => `${(60 - (this.rates.length - 1 - i) * (60 / (POINTS - 1))).toFixed(1)},${(19 - (value / most) * 18).toFixed(1)}`);
    byId("spark").firstElementChild.setAttribute("points", points.join(" "));
  }
}
