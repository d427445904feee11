// The page: conversations at the side, one or two models' columns, one input for all of them.

import * as api from "./api.js";
import { Column } from "./column.js";
import { List, confirmed } from "./list.js";

const $ = (id) => document.getElementById(id);
const WORDS = {
  read: ["Read", "Text to read", "Ctrl+Enter reads. Drop a file anywhere on this page."],
  chat: ["Send", "Message", "Enter sends, Shift+Enter begins a new line."],
  ask: ["Ask", "Question", "Answered from the memory alone; nothing is changed. Enter asks."],
};
const MOST_FILE_BYTES = 64 * 2 ** 20;

let models = [], columns = [], conversation = "", running = null, files = [], active = 0, lastTold = -Infinity;

const mode = () => document.querySelector("input[name=mode]:checked").value;
const comparing = () => $("compare").checked && models.length > 1;
const used = () => columns.slice(0, comparing() ? 2 : 1);

const host = {
  get models() { return models; },
  busy: () => running !== null,
  tell,
  fail,
  newSession: (column, word) => { begin(word); return column.session; },
  changed: () => { list.refresh().catch(fail); tabs(); },
};

function tell(words, often = false) {
  const now = performance.now();
  if (often && now - lastTold < 2000) return;     // a screen reader must not be flooded
  lastTold = now;
  $("live").textContent = words;
}

function fail(error) {
  const words = api.inWords(error);
  const line = document.createElement("p"), close = document.createElement("button");
  line.textContent = words;
  close.type = "button";
  close.textContent = "Dismiss";
  close.addEventListener("click", () => { $("notice").replaceChildren(); $("text").focus(); });
  $("notice").replaceChildren(line, close);
}

// ---- conversations ---------------------------------------------------------------------------------------------------

const slug = (text, most) => text.normalize("NFKD").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+|-+$/g, "").slice(0, most);
const sessionOf = (name, model) => `${name}@${slug(model, 60) || "model"}`;

// A conversation gets its name from what it begins with, and each of its models a session of its own.
function begin(word) {
  if (conversation) return;
  const random = crypto.getRandomValues(new Uint32Array(1))[0].toString(36).slice(0, 5);
  conversation = `${slug(word, 40) || "chat"}-${random}`;
  for (const column of columns) column.session = sessionOf(conversation, column.model);
  if (columns.length > 1 && columns[0].session === columns[1].session) columns[1].session += ":2";
  title();
}

function title() {
  $("name").textContent = conversation || "New conversation";
  const hash = conversation ? `#${encodeURIComponent(conversation)}` : "";
  if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname);
  for (const column of columns) column.parts.model.disabled = conversation !== "" || running !== null;
  list.mark(conversation);
}

function fresh() {
  conversation = "";
  for (const column of columns) column.clear(null);
  title();
}

async function open(name, sessions) {
  if (running) throw new api.Failure("A model is at work: stop it before you open another conversation.");
  fresh();
  conversation = name;
  const place = (id) => models.findIndex((model) => sessionOf(name, model) === id.replace(/:2$/, ""));
  const own = sessions.filter((id) => place(id) >= 0).sort((a, b) => place(a) - place(b)).slice(0, 2);
  const shown = own.length > 1 && columns.length > 1 ? own : [own[0] ?? sessions[0]];
  $("compare").checked = shown.length > 1;
  columns.forEach((column, i) => { if (shown[i] && place(shown[i]) >= 0) column.parts.model.value = models[place(shown[i])]; });
  for (const column of columns.slice(shown.length)) column.session = sessionOf(name, column.model);
  layout();
  title();
  try {
    await Promise.all(shown.map((id, i) => columns[i].open(id)));
  } catch (error) {
    fresh();
    list.refresh().catch(fail);                   // it may be gone
    throw error;
  }
  title();
}

const list = new List({
  open: (name, sessions) => { showList(false); open(name, sessions).catch(fail); },
  fail,
  gone: (name) => { if (name === null || name === conversation) fresh(); },
  busy: () => running !== null,
  tell,
});

// Narrow screens alone hide the list.
function showList(on) {
  if (!on && $("list").contains(document.activeElement) && getComputedStyle($("list-toggle")).display !== "none") $("list-toggle").focus();
  $("list-toggle").setAttribute("aria-expanded", String(on));
  $("list").classList.toggle("shown", on);
}

// ---- columns ---------------------------------------------------------------------------------------------------------

function layout() {
  columns.forEach((column, i) => { column.node.hidden = !used().includes(column); column.node.dataset.active = String(i === active); });
  $("columns").dataset.count = String(used().length);
  tabs();
}

function tabs() {
  const shown = used();
  $("tabs").hidden = shown.length < 2;
  if (active >= shown.length) active = 0;
  $("tabs").replaceChildren(...shown.map((column, i) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.textContent = column.model;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-selected", String(i === active));
    tab.setAttribute("aria-controls", column.node.id);
    tab.tabIndex = i === active ? 0 : -1;
    tab.addEventListener("click", () => choose(i, false));
    tab.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (move) { event.preventDefault(); choose((i + move + shown.length) % shown.length, true); }
    });
    return tab;
  }));
}

function choose(i, focus) {
  active = i;
  layout();
  if (focus) $("tabs").children[i].focus();
}

// ---- input -----------------------------------------------------------------------------------------------------------

function showMode() {
  const [button, label, hint] = WORDS[mode()];
  $("send").textContent = button;
  $("text-label").textContent = label;
  $("hint").textContent = hint;
  $("looking").hidden = mode() !== "read";
  $("example").hidden = mode() !== "read";
  $("files").hidden = $("choose").hidden = mode() === "ask";
}

async function addFiles(chosen) {
  for (const file of chosen) {
    try {
      if (file.size > MOST_FILE_BYTES) throw new api.Failure(`${file.name} is larger than 64 MiB; cut it into parts.`);
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0") || !text.trim()) throw new api.Failure(`${file.name} is ${text.trim() ? "not a text file" : "empty"}.`);
      files.push({ name: file.name, text });
    } catch (error) {
      fail(error instanceof api.Failure ? error : new api.Failure(`${file.name} is not UTF-8 text; convert it to a .txt file first.`));
    }
  }
  if (files.length && mode() === "ask") { document.querySelector("input[value=read]").checked = true; showMode(); }
  showFiles();
}

function showFiles() {
  $("files").replaceChildren(...files.map((file, i) => {
    const item = document.createElement("li"), name = document.createElement("span"), drop = document.createElement("button");
    name.textContent = `${file.name}, ${file.text.length.toLocaleString()} characters`;
    drop.type = "button";
    drop.textContent = "Remove";
    drop.setAttribute("aria-label", `Remove ${file.name}`);
    drop.addEventListener("click", () => { files.splice(i, 1); showFiles(); $("text").focus(); });
    item.append(name, drop);
    return item;
  }));
}

function base64(text) {
  let binary = "";
  const bytes = new TextEncoder().encode(text);
  for (let i = 0; i < bytes.length; i += 0x8000) binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(binary);
}

// What each column shall do, or the sentence that says what is missing.
function task() {
  const text = $("text").value, question = $("question").value.trim();
  if (mode() === "read") {
    const all = [...files.map((file) => file.text), ...(text.trim() ? [text] : [])].join("\n\n");
    if (!all) throw new api.Failure("There is nothing to read: paste a text, or choose a file.");
    const names = [...files.map((file) => file.name), ...(text.trim() ? ["a pasted text"] : [])].join(", ");
    const shown = `Read ${names} (${all.length.toLocaleString()} characters)`;
    return [files[0]?.name ?? text.trim().split(/\s+/, 4).join(" "), (column, signal) => column.read(all, question, shown, signal)];
  }
  if (!text.trim()) throw new api.Failure(mode() === "chat" ? "There is no message yet: write one." : "There is no question yet: write one.");
  if (mode() === "ask") {
    if (!used().some((column) => column.memory)) throw new api.Failure("There is no memory to ask yet: read a text or chat first.");
    return ["", (column, signal) => column.ask(text.trim(), signal)];
  }
  const parts = files.map((file) => ({ type: "file", file: { filename: file.name, file_data: `data:text/plain;base64,${base64(file.text)}` } }));
  const shown = [...files.map((file) => `[${file.name}, ${file.text.length.toLocaleString()} characters]`), text].join("\n");
  const content = parts.length ? [...parts, { type: "text", text }] : text;
  return [files[0]?.name ?? text.trim().split(/\s+/, 4).join(" "), (column, signal) => column.chat(content, shown, signal)];
}

async function submit() {
  if (running) return;
  let word, work;
  try {
    if (used().some((column) => column.editing)) throw new api.Failure("A memory is being edited: save it or cancel first.");
    [word, work] = task();
  } catch (error) { fail(error); $("text").focus(); return; }
  $("notice").replaceChildren();
  if (word) begin(word);
  running = new AbortController();
  busy(true);
  const { signal } = running, kind = mode();
  const changes = kind !== "ask";
  $("text").value = "";
  if (changes) { files = []; showFiles(); }
  const ends = await Promise.allSettled(used().map((column) => work(column, signal).finally(() => column.working(null))));
  const failed = ends.find((end) => end.status === "rejected" && !api.stopped(end.reason));
  if (signal.aborted) {
    for (const column of used()) column.entry("note", "", "Stopped. Nothing of what was under way is kept.");
  }
  if (failed) fail(failed.reason);
  if (changes && (signal.aborted || failed)) {
    // What the server kept is what counts; a stopped turn leaves no trace there.
    await new Promise((done) => setTimeout(done, 300));
    await Promise.all(used().map((column, i) => ends[i].status === "rejected" && column.reload())).catch(fail);
  }
  running = null;
  busy(false);
  if (!failed) tell(signal.aborted ? "Stopped." : "Done.");
  await list.refresh().catch(fail);
}

function busy(on) {
  const held = document.activeElement;
  $("send").disabled = on;
  $("stop").disabled = !on;
  $("compare").disabled = $("new").disabled = on;
  document.body.setAttribute("aria-busy", String(on));
  for (const column of columns) column.show(column.at);
  title();
  if (on && held === $("send")) $("stop").focus();
  if (!on && (held === $("stop") || held === document.body)) $("text").focus();
}

// ---- the start -------------------------------------------------------------------------------------------------------

api.onKeyNeeded(async (refusedBefore) => {
  const dialog = $("key");
  $("key-text").textContent = `${refusedBefore ? "The server does not know this key." : "This server asks for a key."} It is kept in this page only, until you close it.`;
  $("key-value").value = "";
  $("key-open").hidden = false;
  return (await confirmed(dialog, $("key-value"))) ? $("key-value").value.trim() || null : null;
});

$("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("composer").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing || event.target.tagName === "BUTTON") return;
  const sends = event.ctrlKey || event.metaKey || (event.target === $("text") && mode() !== "read" && !event.shiftKey);
  if (sends) { event.preventDefault(); submit(); }
});
for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", showMode);
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => { fresh(); $("text").focus(); });
$("compare").addEventListener("change", layout);
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => { await addFiles($("file").files); $("file").value = ""; });
$("example").addEventListener("click", async () => {
  const response = await fetch("page/example.txt").catch(() => null);
  if (response?.ok) { $("text").value = await response.text(); $("text").focus(); $("text").setSelectionRange(0, 0); }
});
$("theme").addEventListener("change", () => { document.documentElement.dataset.theme = $("theme").value; });
$("key-open").addEventListener("click", async () => {
  if (await confirmed($("key"), $("key-value"))) { api.setKey($("key-value").value.trim()); start(); }
});
$("list-toggle").addEventListener("click", () => showList($("list-toggle").getAttribute("aria-expanded") !== "true"));

let dragged = 0;
const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const showDrop = (on) => { dragged = on ? dragged + 1 : 0; $("drop").hidden = !on; };
addEventListener("dragenter", (event) => { if (carriesFiles(event)) showDrop(true); });
addEventListener("dragleave", () => { if (dragged > 0 && --dragged === 0) showDrop(false); });
addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  showDrop(false);
  if (carriesFiles(event)) { event.preventDefault(); addFiles(event.dataTransfer.files); }
});
addEventListener("hashchange", () => { if (!running) fromHash().catch(fail); });

function named() {
  try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; }
}

async function fromHash(wanted = named()) {
  if (!wanted || wanted === conversation || wanted === "text") return;
  const found = list.find(wanted);
  if (found) await open(wanted, found);
}

async function start() {
  const wanted = named();
  try {
    models = await api.models();
    columns = models.slice(0, 2).map((_, number) => new Column(number, host));
    $("columns").replaceChildren(...columns.map((column) => column.node));
    $("compare-label").hidden = models.length < 2;
    $("compare").checked = models.length > 1;
    layout();
    conversation = "";
    title();
    await list.refresh();
    await fromHash(wanted);
  } catch (error) { fail(error); }
  document.body.dataset.ready = "true";
}

showMode();
start();
