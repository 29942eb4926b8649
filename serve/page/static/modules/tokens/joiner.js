// Tokens out of the chunks of a stream.

/** Joins text, log-probabilities and compute, which may come in different chunks: text waits where it may begin a stop. */
export class Joiner {
  constructor() {
    this.tokens = [];
    this.records = 0;
    this.scores = 0;
  }

  /** Take in a choice of a chunk; returns the first token that is new or has changed. */
  take(choice) {
    const text = choice.delta?.content ?? choice.text ?? "";
    const records = [choice.compute ?? []].flat();
    const scores = logprobsOf(choice.logprobs);
    let first = this.tokens.length;
    const at = (i) => {
      first = Math.min(first, i);
      return (this.tokens[i] ??= { text: "", token: null, compute: null, logprob: null, alternatives: [] });
    };
    const begin = records.length ? this.records : this.scores;
    for (const record of records) at(this.records++).compute = record;
    for (const score of scores) Object.assign(at(this.scores++), score);
    const texts = records.length ? records.map((record) => record.text ?? "") : scores.map((score) => score.token);
    if (texts.join("") === text) texts.forEach((part, i) => (at(begin + i).text += part));
    else if (text !== "") at(this.records || this.scores ? this.tokens.length - 1 : this.tokens.length).text += text;
    return first;
  }
}

function logprobsOf(logprobs) {
  if (Array.isArray(logprobs?.content)) {
    return logprobs.content.map((entry) => ({ token: entry.token, logprob: entry.logprob, alternatives: entry.top_logprobs ?? [] }));
  }
  return (logprobs?.tokens ?? []).map((token, i) => ({
    token,
    logprob: logprobs.token_logprobs?.[i] ?? null,
    alternatives: Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([other, logprob]) => ({ token: other, logprob })),
  }));
}
