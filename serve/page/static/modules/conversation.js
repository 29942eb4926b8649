// The turns of a conversation: what was asked, the answers that stream in, and the history that the next request sends.

import { ServerError, explain, generate } from "./api.js";
import { Answer, verdict } from "./tokens/answer.js";
import { announce, byId, element } from "./dom.js";

const ALTERNATIVES = 5;

export class Conversation {
  /** `scale()`: the present scale; `grew(answer, begin)`: tokens were added; `changed()`: it began or ended to write; `locked()`: a key is needed. */
  constructor({ scale, grew, changed, locked }) {
    Object.assign(this, { scale, changed, locked });
    this.grew = (answer, begin) => {
      grew(answer, begin);
      if (this.atEnd) this.toEnd();
    };
    this.turns = [];
    this.running = new Set();
    this.atEnd = true;
    new IntersectionObserver(
      ([entry]) => {
        this.atEnd = entry.isIntersecting;
        byId("latest").hidden = this.atEnd || this.turns.length === 0;
      },
      { root: byId("scroll"), rootMargin: "60px" },
    ).observe(byId("end"));
    byId("latest").addEventListener("click", () => this.toEnd());
  }

  get busy() {
    return this.running.size > 0;
  }

  get answers() {
    return this.turns.flatMap((turn) => [...turn.answers.values()]);
  }

  /** Ask: one answer for each of `choices` of the dial. */
  send({ mode, prompt, model, choices, sampling }) {
    const answers = element("div", { class: "answers" });
    const asked = element("div", { class: "asked" }, element("span", { class: "who" }, mode === "chat" ? "You" : "Prompt"), prompt);
    const turn = { mode, prompt, model, answers: new Map(), box: answers, number: this.turns.length + 1, sampling: { ...sampling } };
    // Two dials on one prompt differ in the dial alone.
    if (choices.length > 1) turn.sampling.seed ??= Math.floor(Math.random() * 2 ** 31);
    turn.node = element("article", { class: choices.length > 1 ? "turn two" : "turn", "aria-label": `Turn ${turn.number}` }, asked, answers);
    turn.histories = new Map(choices.map(({ side }) => [side, this.history(side)]));
    this.turns.push(turn);
    byId("welcome").hidden = true;
    byId("turns").append(turn.node);
    for (const choice of choices) this.write(turn, choice);
    this.toEnd();
    announce(choices.length > 1 ? "Writing two answers." : "Writing.");
  }

  async write(turn, choice) {
    const { model } = turn;
    const answer = new Answer({ side: choice.side, model: model.name, dial: choice.name, number: turn.number, shape: model, scale: this.scale, grew: this.grew });
    const old = turn.answers.get(choice.side);
    turn.answers.set(choice.side, answer);
    if (old) old.node.replaceWith(answer.node);
    else turn.box.append(answer.node);
    const run = { abort: new AbortController() };
    this.running.add(run);
    this.changed();
    const again = () => {
      if (!this.turns.includes(turn)) return;
      turn.verdict?.remove();
      this.write(turn, choice);
      answer.body.focus();
    };
    try {
      const [path, body] = this.request(turn, choice);
      const { finish, usage } = await generate(path, body, run.abort.signal, (choice) => answer.take(choice));
      answer.end(finish ?? "stop", usage);
      announce(`${answer.title} written${answer.share === null ? "" : `, ${Math.round(answer.share * 100)} % of the dense compute`}.`);
    } catch (error) {
      if (run.abort.signal.aborted) {
        answer.end("cancelled", null);
        announce("Stopped.");
      } else {
        answer.end("error", null);
        if (!(error instanceof ServerError)) console.error(error);
        answer.fail(error instanceof ServerError ? explain(error, answer.tokens.length) : ["The page could not read the answer", "The server sent something unexpected; the browser's console says what."], again);
        if (error.status === 401 || error.status === 403) this.locked();
      }
    }
    this.running.delete(run);
    this.compare(turn);
    this.changed();
  }

  /** Write below two finished answers how they differ. */
  compare(turn) {
    const [a, b] = turn.answers.values();
    if (!b || a.busy || b.busy || !a.tokens.length || !b.tokens.length || a.finish === "error" || b.finish === "error") return;
    turn.verdict = element("p", { class: "verdict" }, verdict(a, b));
    turn.node.append(turn.verdict);
    if (this.atEnd) this.toEnd();
  }

  request(turn, { side, compute }) {
    const shared = { model: turn.model.name, stream: true, stream_options: { include_usage: true }, compute, compute_details: true, ...turn.sampling };
    if (turn.mode === "plain") return ["v1/completions", { ...shared, prompt: turn.prompt, logprobs: ALTERNATIVES }];
    const messages = [...turn.histories.get(side), { role: "user", content: turn.prompt }];
    return ["v1/chat/completions", { ...shared, messages, logprobs: true, top_logprobs: ALTERNATIVES }];
  }

  /** The messages so far, with the answers of one side where there were two. A turn without an answer is left out. */
  history(side) {
    return this.turns.flatMap((turn) => {
      const answer = turn.answers.get(side) ?? turn.answers.values().next().value;
      if (turn.mode !== "chat" || !answer?.text) return [];
      return [
        { role: "user", content: turn.prompt },
        { role: "assistant", content: answer.text },
      ];
    });
  }

  stop() {
    for (const run of this.running) run.abort.abort();
  }

  clear() {
    this.stop();
    this.turns = [];
    byId("turns").replaceChildren();
    byId("welcome").hidden = false;
    byId("latest").hidden = true;
    this.changed();
  }

  toEnd() {
    const scroll = byId("scroll");
    scroll.scrollTop = scroll.scrollHeight;
  }
}
