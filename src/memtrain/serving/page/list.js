// The conversations of this owner. A conversation is one session, or one for each model: NAME@MODEL.

import * as api from "./api.js";
import { element } from "./column.js";

const $ = (id) => document.getElementById(id);

// Opens a dialog and resolves to whether it was confirmed; the focus goes back to where it was.
export async function confirmed(dialog, first) {
  const before = document.activeElement;
  dialog.returnValue = "";
  dialog.querySelector(".close").onclick = () => dialog.close();
  dialog.showModal();
  first?.focus();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  if (before?.isConnected) before.focus();
  return dialog.returnValue === "yes";
}

async function sure(title, text, word) {
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = word;
  return confirmed($("confirm"));
}

export class List {
  // `host`: { open(name, ids), fail(error), gone(name or null for all), busy(), tell(words) }
  constructor(host) {
    this.host = host;
    this.rows = [];
    this.pages = 1;
    this.current = "";
    $("more").addEventListener("click", () => { this.pages++; this.refresh().catch(host.fail); });
    $("delete-all").addEventListener("click", () => this.deleteAll().catch(host.fail));
  }

  async refresh() {
    const rows = [];
    let more = true;
    for (let page = 0; page < this.pages && more; page++) {
      const found = await api.sessions(rows.at(-1)?.session_id);
      rows.push(...found.data);
      more = found.has_more;
    }
    this.rows = rows;
    $("more").hidden = !more;
    this.draw();
  }

  // name -> its sessions, the conversation that was used last first
  grouped() {
    const groups = new Map();
    for (const row of this.rows) {
      const cut = row.session_id.lastIndexOf("@");
      const name = cut > 0 ? row.session_id.slice(0, cut) : row.session_id;
      groups.set(name, [...(groups.get(name) ?? []), row]);
    }
    const newest = (rows) => Math.max(...rows.map((row) => row.updated));
    return [...groups].sort(([, a], [, b]) => newest(b) - newest(a));
  }

  find(name) {
    const found = this.grouped().find(([own]) => own === name);
    return found?.[1].map((row) => row.session_id);
  }

  mark(name) {
    this.current = name;
    for (const item of $("conversations").children) {
      const button = item.querySelector(".open");
      if (item.dataset.name === name) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  draw() {
    const held = document.activeElement?.closest?.("#conversations li")?.dataset.name;
    const groups = this.grouped();
    $("conversations").replaceChildren(...groups.map(([name, rows]) => this.item(name, rows)));
    $("none").hidden = groups.length > 0;
    $("delete-all").hidden = groups.length === 0;
    this.mark(this.current);
    if (held !== undefined) {
      const same = [...$("conversations").children].find((item) => item.dataset.name === held);
      (same?.querySelector(".open") ?? $("new")).focus();
    }
  }

  item(name, rows) {
    const ids = rows.map((row) => row.session_id);
    const when = new Date(Math.max(...rows.map((row) => row.updated)) * 1000);
    const turns = Math.max(...rows.map((row) => row.turn));
    const about = `${turns} ${turns === 1 ? "turn" : "turns"}${rows.length > 1 ? `, ${rows.length} models` : ""}, ${when.toLocaleString([], { dateStyle: "short", timeStyle: "short" })}`;
    const open = element("button", { type: "button", class: "open" }, element("b", {}, name), element("span", { class: "quiet" }, about));
    const save = element("button", { type: "button", "aria-label": `Export ${name}` }, "Export");
    const drop = element("button", { type: "button", class: "danger", "aria-label": `Delete ${name}` }, "Delete");
    open.addEventListener("click", () => this.host.open(name, ids));
    save.addEventListener("click", () => this.export(name, ids).catch(this.host.fail));
    drop.addEventListener("click", () => this.delete(name, ids).catch(this.host.fail));
    const item = element("li", {}, open, element("span", { class: "row" }, save, drop));
    item.dataset.name = name;
    return item;
  }

  async export(name, ids) {
    const data = await Promise.all(ids.map(api.history));
    const url = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
    const link = element("a", { href: url, download: `${name}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    this.host.tell(`${name} is exported.`);
  }

  idle() {
    if (this.host.busy()) throw new api.Failure("A model is at work: stop it first.");
  }

  async delete(name, ids) {
    this.idle();
    const whose = ids.length > 1 ? `the memories of ${ids.length} models` : "the memory";
    if (!await sure(`Delete ${name}?`, `This removes ${whose} and all earlier turns for good.`, "Delete")) return;
    await Promise.all(ids.map((id) => api.remove(id).catch((error) => {
      if (error.status !== 404) throw error;      // gone already
    })));
    this.host.gone(name);
    this.host.tell(`${name} is deleted.`);
    await this.refresh();
    if (document.activeElement === document.body) $("new").focus();
  }

  async deleteAll() {
    this.idle();
    const text = "This removes every conversation that this server keeps for you, also those of other programs, for good.";
    if (!await sure("Delete all conversations?", text, "Delete all")) return;
    const { deleted } = await api.removeAll();
    this.host.gone(null);
    this.host.tell(`${deleted} sessions are deleted.`);
    await this.refresh();
    $("new").focus();
  }
}
