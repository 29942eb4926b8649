// Connect the parts of the page.

import { hasKey, setKey } from "./api.js";
import { placeOf } from "./tokens/answer.js";
import { Conversation } from "./conversation.js";
import { Details } from "./tokens/details.js";
import { Dials } from "./dials.js";
import { announce, byId, element } from "./dom.js";
import { Load } from "./load.js";
import { Maps } from "./tokens/maps.js";
import { LEVELS, MEASURES, Scale } from "./tokens/measures.js";
import { walk } from "./tokens/keys.js";

const EXAMPLES = {
  chat: ["How do mountains form?", "Why does the moon have phases?", "What is a cell?"],
  plain: ["Once upon a time", "The experiment showed that", "def main():"],
};
const WORDS = { chat: ["Message", "Ask something"], plain: ["Prompt", "Begin a text; the model continues it"] };

let scale = new Scale(MEASURES[0]);
let models = [];
let props = {};

const dials = new Dials();
const choose = (answer, index, pin) => (pin || !details.pinned) && details.select(answer, index, { pin, reveal: true });
const maps = new Maps(choose);
const details = new Details((answer, index) => maps.show(answer, index));
const conversation = new Conversation({ scale: () => scale, grew, changed: buttons, locked: () => askKey(hasKey()) });
const load = new Load({ changed: adopt, locked: () => askKey(hasKey()) });

// The scale and its legend.

function grew(answer, begin) {
  let moved = false;
  for (let i = begin; i < answer.tokens.length; i++) moved = scale.add(answer.tokens[i], i) || moved;
  if (moved) shadeAll();
  details.follow(answer);
}

function shadeAll() {
  for (const answer of conversation.answers) answer.shade();
  const { measure, low, high } = scale;
  byId("low").textContent = low === null ? "less" : measure.format(low);
  byId("high").textContent = high === null ? "more" : measure.format(high);
  byId("scale-unit").textContent = measure.note;
  byId("legend").setAttribute("aria-label", low === null ? "Shades: from less to more" : `Shades: pale is ${measure.format(low)}, strong is ${measure.format(high)} ${measure.note}`);
}

byId("swatches").append(...Array.from({ length: LEVELS }, (_, level) => element("i", { class: `s${level}` })));
byId("measure").append(...MEASURES.map(({ id, label }) => element("option", { value: id }, label)));
byId("measure").addEventListener("change", () => {
  scale = new Scale(MEASURES.find(({ id }) => id === byId("measure").value));
  for (const answer of conversation.answers) answer.tokens.forEach((token, i) => scale.add(token, i));
  shadeAll();
});
shadeAll();

// Tokens: pointer, tap, keys.

byId("turns").addEventListener("pointerover", (event) => {
  const place = event.pointerType === "mouse" ? placeOf(event.target) : null;
  if (place && !details.pinned) details.select(...place);
});
byId("turns").addEventListener("click", (event) => {
  const place = placeOf(event.target);
  if (place && getSelection().isCollapsed) details.select(...place, { pin: true });
});
byId("turns").addEventListener("focusin", (event) => {
  const answer = conversation.answers.find(({ body }) => body === event.target);
  if (answer && answer !== details.answer && event.target.matches(":focus-visible")) details.select(answer, 0, { speak: true });
});
byId("turns").addEventListener("keydown", (event) => {
  const answer = conversation.answers.find(({ body }) => body === event.target);
  if (answer) walk(event, answer, details);
});
byId("sheet").addEventListener("click", () => {
  const open = byId("sheet").getAttribute("aria-expanded") === "false";
  byId("sheet").setAttribute("aria-expanded", String(open));
  if (details.answer) details.select(details.answer, details.index, { reveal: true });
});

// Models, and the state of the server.

function adopt(answer) {
  props = answer;
  const names = (answer.models ?? []).map(({ name }) => name);
  const select = byId("model");
  if (names.join("\n") !== models.map(({ name }) => name).join("\n")) {
    const before = select.value;
    select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    if (names.includes(before)) select.value = before;
    select.disabled = names.length === 0;
  }
  models = answer.models ?? [];
  byId("key-button").hidden = !hasKey();
  adjust();
}

const model = () => models.find(({ name }) => name === byId("model").value) ?? null;
const mode = () => document.querySelector("input[name=mode]:checked").value;

/** Offer what the chosen model can do. */
function adjust() {
  const chosen = model();
  const [chat, plain] = document.querySelectorAll("input[name=mode]");
  chat.disabled = chosen?.chat === false;
  chat.parentElement.title = chat.disabled ? `${chosen.name} has no chat template: it continues texts` : "";
  if (chat.disabled && chat.checked) plain.checked = true;
  dials.setModel(chosen, props.auto);
  const [label, placeholder] = WORDS[mode()];
  byId("prompt-label").textContent = label;
  byId("prompt").placeholder = placeholder;
  if (byId("examples").dataset.mode !== mode()) {
    byId("examples").dataset.mode = mode();
    byId("examples").replaceChildren(...EXAMPLES[mode()].map((text) => element("button", { type: "button", onclick: () => fillPrompt(text) }, text)));
  }
  buttons();
}

byId("model").addEventListener("change", adjust);
for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", adjust);

// The prompt.

function fillPrompt(text) {
  byId("prompt").value = text;
  byId("prompt").focus();
  buttons();
}

function buttons() {
  const { busy } = conversation;
  const focused = document.activeElement;
  byId("stop").hidden = !busy;
  byId("send").hidden = busy;
  byId("send").disabled = !model() || byId("prompt").value.trim() === "";
  if (focused === byId("stop") && !busy) byId("prompt").focus();
}

function number(id) {
  const input = byId(id);
  return input.value === "" || !input.checkValidity() ? undefined : input.valueAsNumber;
}

function send() {
  const prompt = byId("prompt").value;
  if (conversation.busy || !model() || prompt.trim() === "") return;
  const invalid = ["temperature", "max-tokens", "seed"].find((id) => !byId(id).checkValidity());
  if (invalid) {
    byId("sampling").open = true;
    byId(invalid).reportValidity();
    return;
  }
  byId("sampling").open = false;
  details.release();
  conversation.send({
    mode: mode(),
    prompt,
    model: model(),
    choices: dials.chosen,
    sampling: { temperature: number("temperature"), max_tokens: number("max-tokens"), seed: number("seed") },
  });
  if (mode() === "chat") byId("prompt").value = "";
  else byId("prompt").select(); // to change a word and run it again
  buttons();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("input", buttons);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => conversation.stop());
byId("new").addEventListener("click", () => {
  conversation.clear();
  details.clear();
  scale = new Scale(scale.measure);
  shadeAll();
  byId("prompt").focus();
  announce("New conversation.");
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("key-dialog").open) return;
  if (byId("sampling").open) byId("sampling").open = false;
  else if (details.pinned) details.release();
  else conversation.stop();
});
document.addEventListener("pointerdown", (event) => {
  if (!byId("sampling").contains(event.target)) byId("sampling").open = false;
});

// The key.

let refused = false; // the person closed the question: it comes again with the button

function askKey(wrong) {
  byId("key-button").hidden = false;
  if (byId("key-dialog").open || refused) return;
  byId("key-title").textContent = wrong ? "The server did not accept the key" : "This server asks for a key";
  byId("key").value = "";
  byId("key-dialog").showModal();
}

byId("key-button").addEventListener("click", () => {
  refused = false;
  askKey(false);
});
byId("key-cancel").addEventListener("click", () => {
  refused = true;
  byId("key-dialog").close();
});
byId("key-dialog").addEventListener("cancel", () => {
  refused = true;
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key").value = "";
  byId("key-dialog").close();
  load.ask();
});

adjust();
load.ask();
byId("prompt").focus();
