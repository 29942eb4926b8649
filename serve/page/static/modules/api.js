// The server's API: requests with the key, streams of events, and errors in plain words.

const KEY = "adaptive-key";
const UNREACHABLE = "unreachable";
const BROKEN = "broken";

/** An answer of the server that is no success, or no answer at all. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  get unreachable() {
    return this.code === UNREACHABLE;
  }
}

/** Keep a key for this tab; "" forgets it. */
export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** Send a request; the response has succeeded. */
export async function call(path, { body = null, signal = undefined } = {}) {
  const headers = { Accept: "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      body: body ? JSON.stringify(body) : undefined,
      headers,
      signal,
      cache: "no-store",
      credentials: "same-origin",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServerError("The server cannot be reached.", { code: UNREACHABLE });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // A proxy or a crash: the status has to be enough.
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new ServerError(String(told.message ?? `${response.status} ${response.statusText}`.trim()), {
    status: response.status,
    code: told.code ?? null,
    retryAfter: Number.isFinite(seconds) ? Math.ceil(seconds) : null,
  });
}

/** Yield the data of each server-sent event of a response. */
export async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      // A carriage return at the very end may be half of a line end.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Stream a text. `onChoice` gets the choice of each chunk.
 * Returns why it ended, and the usage. Throws a ServerError, also where the stream breaks off.
 */
export async function generate(path, body, signal, onChoice) {
  const response = await call(path, { body, signal });
  const result = { finish: null, usage: null };
  let ended = false;
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") {
        ended = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(String(chunk.error.message), { status: chunk.error.status ?? 500, code: chunk.error.code ?? null });
      result.usage = chunk.usage ?? result.usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      onChoice(choice);
      result.finish = choice.finish_reason ?? result.finish;
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error;
    throw new ServerError("The connection broke before the text ended.", { code: BROKEN });
  }
  if (!ended && result.finish === null) throw new ServerError("The connection broke before the text ended.", { code: BROKEN });
  return result;
}

/** Say what went wrong and what to do. */
export function explain(error, written) {
  const kept = written ? ` The ${written === 1 ? "token" : `${written} tokens`} so far ${written === 1 ? "stays" : "stay"} above.` : "";
  const told = sentence(error.message);
  if (error.code === UNREACHABLE) return ["The server cannot be reached", `It may have stopped, or the network is away.${kept} This page connects again by itself; then press “Try again”.`];
  if (error.code === BROKEN) return ["The connection broke before the text ended", `The server may have stopped.${kept} Press “Try again” to ask once more.`];
  switch (error.status) {
    case 401:
    case 403:
      return ["The server asks for a key", `${told} Press “Key”, type it, then press “Try again”.`];
    case 404:
      return ["The server does not have this model", `${told} Choose another model above.`];
    case 413:
      return ["The prompt is too long for this server", `${told} Shorten it, or begin a new conversation.`];
    case 429:
      return ["The server is full", `${told}${error.retryAfter && !told.includes(`${error.retryAfter} s`) ? ` It expects to have room in ${error.retryAfter} s.` : ""} Then press “Try again”.`];
    case 503:
      return ["The server cannot take this request now", `${told}${kept} Wait a moment, then press “Try again”.`];
    case 504:
      return ["The answer took too long", `${told}${kept} Ask for fewer tokens, or try again when the server is less busy.`];
    default:
      if (error.status >= 400 && error.status < 500) return ["The server refused this request", told];
      return ["The server failed", `${told}${kept} Try again; if it stays, look into the server's log.`];
  }
}

function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}
