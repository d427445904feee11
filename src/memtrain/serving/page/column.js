// One model's side of a conversation: its memory with what changed, and what was said.

import * as api from "./api.js";
import { changed, countWords } from "./changes.js";

const BLANK = "No memory yet.";
const MODES = { same: "span", added: "ins", lost: "del" };

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);                       // strings become text nodes, never markup
  return node;
}

export class Column {
  // `host`: { models, busy(), tell(words), fail(error), changed() }
  constructor(number, host) {
    const content = document.getElementById("column").content.cloneNode(true);
    this.node = content.querySelector("section");
    this.number = number;
    this.host = host;
    this.node.id = `column-${number}`;
    const find = (selector) => this.node.querySelector(selector);
    this.parts = {
      model: find(".model"), turn: find(".turn"), count: find(".count"), marks: find(".marks"), edit: find(".edit"),
      steps: find(".steps"), range: find("input[type=range]"), earlier: find(".earlier"), later: find(".later"),
      label: find("output"), words: find(".words"), legend: find(".legend"), editing: find(".editing"),
      draft: find(".editing textarea"), cancel: find(".cancel"), progress: find(".progress"), log: find(".log"),
    };
    const { parts } = this;
    for (const model of host.models) parts.model.append(element("option", { value: model }, model));
    parts.model.value = host.models[number] ?? host.models[0] ?? "";
    parts.model.addEventListener("change", () => { this.name(); host.changed(); });
    parts.range.addEventListener("input", () => this.show(Number(parts.range.value)));
    parts.earlier.addEventListener("click", () => this.show(this.at - 1));
    parts.later.addEventListener("click", () => this.show(this.at + 1));
    parts.marks.addEventListener("change", () => this.show(this.at));
    parts.edit.addEventListener("click", () => this.startEdit());
    parts.cancel.addEventListener("click", () => this.endEdit());
    parts.editing.addEventListener("submit", (event) => { event.preventDefault(); this.save(); });
    parts.editing.addEventListener("keydown", (event) => { if (event.key === "Escape") this.endEdit(); });
    this.clear(null);
  }

  get editing() { return !this.parts.editing.hidden; }
  get model() { return this.parts.model.value; }
  get memory() { return this.pieces.at(-1)?.memory ?? ""; }

  name() {
    this.parts.words.setAttribute("aria-label", `Memory of ${this.model}`);
    this.parts.log.setAttribute("aria-label", `Conversation with ${this.model}`);
    this.parts.edit.setAttribute("aria-label", `Edit the memory of ${this.model}`);
  }

  // ---- what is kept ------------------------------------------------------------------------------------------------

  clear(session) {
    this.session = session;
    this.turn = 0;
    this.pieces = [];
    this.parts.log.replaceChildren();
    this.endEdit(false);
    this.working(null);
    this.name();
    this.show(0);
  }

  async open(session) {
    this.clear(session);
    const { session: state, turns } = await api.history(session);
    if (this.host.models.includes(state.model)) this.parts.model.value = state.model;
    this.name();
    this.take(state, turns);
    if (state.recent.length) this.entry("note", "", "The last messages of this conversation, which the model still sees:");
    for (const message of state.recent) this.entry(message.role === "user" ? "you" : "model", message.role === "user" ? "You" : this.model, message.content);
  }

  take(state, turns) {
    this.turn = state.turn;
    this.pieces = turns.map((turn) => ({ label: `turn ${turn.turn}`, memory: turn.memory }));
    if (this.memory !== state.memory && (state.memory !== BLANK || this.pieces.length)) this.pieces.push({ label: "edited", memory: state.memory });
    this.show(this.pieces.length - 1);
  }

  // The server's word on what is kept, after a stop or a failure.
  async reload() {
    try {
      const { session: state, turns } = await api.history(this.session);
      this.take(state, turns);
    } catch (error) {
      if (error.status !== 404) throw error;
      this.turn = 0;
      this.pieces = [];
      this.show(0);
    }
  }

  // ---- the memory --------------------------------------------------------------------------------------------------

  add(label, memory) {
    const following = this.at >= this.pieces.length - 1;
    this.pieces.push({ label, memory });
    this.show(following ? this.pieces.length - 1 : this.at);
  }

  show(place) {
    const { parts, pieces } = this;
    this.at = Math.max(0, Math.min(place, pieces.length - 1));
    const last = pieces.length - 1, piece = pieces[this.at];
    const before = this.at > 0 ? pieces[this.at - 1].memory : "";
    const focused = document.activeElement;
    parts.steps.hidden = pieces.length < 2;
    parts.range.max = String(Math.max(0, last));
    parts.range.value = String(this.at);
    parts.earlier.disabled = this.at === 0;
    parts.later.disabled = this.at >= last;
    if (focused === parts.earlier && parts.earlier.disabled) parts.later.focus();
    if (focused === parts.later && parts.later.disabled) parts.earlier.focus();
    parts.label.value = piece?.label ?? "";
    parts.range.setAttribute("aria-valuetext", piece ? `${piece.label}, memory ${this.at + 1} of ${pieces.length}` : "");
    parts.turn.textContent = this.turn ? `turn ${this.turn}` : "";
    parts.edit.disabled = this.host.busy();
    if (!piece || !piece.memory) {
      parts.words.replaceChildren(element("em", {}, BLANK));
      parts.count.textContent = "";
      parts.legend.hidden = true;
      return;
    }
    const marks = parts.marks.checked;
    const runs = marks ? changed(before === BLANK ? "" : before, piece.memory) : [["same", piece.memory]];
    parts.words.replaceChildren(...runs.flatMap(run));
    const count = (kind) => runs.filter(([k]) => k === kind).reduce((sum, [, text]) => sum + countWords(text), 0);
    parts.count.textContent = marks
      ? `+${count("added")} −${count("lost")} words, ${count("same")} kept`
      : `${countWords(piece.memory)} words`;
    parts.legend.hidden = !marks;
  }

  startEdit() {
    const { parts } = this;
    this.show(this.pieces.length - 1);
    parts.draft.value = this.memory === BLANK ? "" : this.memory;
    parts.editing.hidden = false;
    parts.words.hidden = true;
    parts.draft.focus();
  }

  endEdit(focus = true) {
    const { parts } = this;
    const open = this.editing;
    parts.editing.hidden = true;
    parts.words.hidden = false;
    if (open && focus) parts.edit.focus();
  }

  async save() {
    const text = this.parts.draft.value;
    try {
      this.session ??= this.host.newSession(this, "edited");
      const state = await api.edit(this.session, text, this.turn);
      this.turn = state.turn;
      this.endEdit();
      this.add("edited", state.memory);
      this.show(this.pieces.length - 1);
      this.host.tell("The memory is saved.");
      this.host.changed();
    } catch (error) {
      this.host.fail(error);
      if (error.status === 409) await this.reload().catch(() => {});
    }
  }

  // ---- what is done with it ----------------------------------------------------------------------------------------

  async read(text, question, title, signal) {
    this.entry("you", "You", `${title}${question ? `\nWhat to look for: ${question}` : ""}`);
    const began = performance.now();
    let chunks = 0;
    for await (const event of api.read(this.session, text, question, this.model, signal)) {
      if (event.event === "reading") { chunks = event.chunks; this.reading(event); }
      else if (event.event === "memory") this.done(event);
    }
    this.entry("note", "", `Read ${chunks} ${chunks === 1 ? "piece" : "pieces"} in ${seconds(began)}.`);
  }

  async chat(content, shown, signal) {
    this.entry("you", "You", shown);
    const began = performance.now();
    let reply = null, usage = null;
    this.working("thinks");
    for await (const event of api.chat(this.session, content, this.model, signal)) {
      const extra = event.memtrain, piece = event.choices?.[0]?.delta?.content;
      if (extra?.event === "reading") this.reading(extra);
      else if (extra?.event === "memory") this.done(extra);
      if (piece) {
        this.working("writes");
        reply ??= this.entry("model", this.model, "");
        reply.append(piece);
        this.parts.log.scrollTop = this.parts.log.scrollHeight;
      }
      usage = event.usage ?? usage;
    }
    reply ??= this.entry("model", this.model, "(nothing)");
    const tokens = usage ? ` ${usage.prompt_tokens.toLocaleString()} tokens read, ${usage.completion_tokens.toLocaleString()} written.` : "";
    this.entry("note", "", `${seconds(began)}.${tokens}`);
  }

  async ask(question, signal) {
    this.entry("you", "You ask the memory", question);
    this.working("answers");
    const { answer } = await api.ask(this.session, question, this.model, signal);
    this.entry("model", `${this.model}, from memory alone`, answer || "(nothing)");
  }

  reading({ chunk, chunks, memory }) {
    this.add(`piece ${chunk} of ${chunks}`, memory);
    this.working(`${chunk} of ${chunks} pieces read`, chunk, chunks);
  }

  done({ memory, turn }) {
    if (turn) this.turn = turn;
    // The last piece of a text and the memory of its turn are the same; a chat turn writes one more.
    if (this.memory !== memory) this.add(`turn ${this.turn}`, memory);
    else this.show(this.at);
  }

  working(what, done = null, total = null) {
    const { progress } = this.parts, [bar, words] = progress.children;
    progress.hidden = what === null;
    if (what === null) return;
    if (total === null) bar.removeAttribute("value");
    else { bar.max = total; bar.value = done; }
    words.textContent = `${what} …`;
    bar.setAttribute("aria-label", `${this.model}: ${what}`);
    this.host.tell(`${this.model}: ${what}`, total !== null && done < total);
  }

  entry(kind, who, text) {
    const body = element("p", {}, text);
    this.parts.log.append(element("li", { class: kind }, ...(who ? [element("b", {}, who)] : []), body));
    this.parts.log.scrollTop = this.parts.log.scrollHeight;
    return body;
  }
}

function run([kind, text], i, runs) {
  if (kind === "same") return [document.createTextNode(text)];
  const words = text.trimEnd(), mark = (said) => element("span", { class: "unseen" }, said);
  const node = element(MODES[kind], {}, mark(kind === "added" ? "[added: " : "[lost: "), words, mark("]"));
  // The white space of what was lost is only shown where nothing stands in its place.
  return kind === "lost" && runs[i + 1]?.[0] === "added" ? [node] : [node, text.slice(words.length)];
}

const seconds = (began) => `${((performance.now() - began) / 1000).toFixed(1)} s`;
