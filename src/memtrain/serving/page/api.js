// The server's API: every failure becomes an Error whose message can be shown as it is.

export class Failure extends Error {
  constructor(message, status = 0) { super(message); this.status = status; }
}

let key = "";                                     // in this page's memory alone, never stored
let askForKey = async () => null;                 // set by the page; resolves to a key, or null where none was given
let asking = null;

export const onKeyNeeded = (ask) => { askForKey = ask; };
export const setKey = (value) => { key = value; };
export const inWords = (error) => error instanceof Failure ? error.message : `The page failed: ${error?.message ?? error}`;
export const stopped = (error) => error?.name === "AbortError";

export async function send(method, path, body, { signal, headers = {} } = {}) {
  const used = key;
  let response;
  try {
    response = await fetch(path, {
      method, signal, cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
      headers: {
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(used ? { Authorization: `Bearer ${used}` } : {}),
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (stopped(error)) throw error;
    throw new Failure("The server does not answer. Is memtrain still running?");
  }
  if (response.ok) return response;
  const refusal = await refused(response);
  if (response.status !== 401) throw refusal;
  // Several requests may be refused at once: the key is asked for once.
  if (used === key) {
    asking ??= askForKey(used !== "").finally(() => { asking = null; });
    const given = await asking;
    if (given === null) throw new Failure("This server asks for an API key, and none was given.", 401);
    key = given;
  }
  return send(method, path, body, { signal, headers });
}

async function refused(response) {
  let message = "";
  try { message = (await response.json()).error.message; } catch { /* not one of this server's answers */ }
  return new Failure(message ? sentence(message) : `The server answered with status ${response.status}.`, response.status);
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}`;

export async function json(method, path, body, options) {
  const response = await send(method, path, body, options);
  try { return await response.json(); } catch (error) {
    if (stopped(error)) throw error;
    throw new Failure("The server's answer was cut off.");
  }
}

// Server-sent events of one request, parsed; ends at [DONE]. Raises where the stream breaks off before.
export async function* events(path, body, options) {
  const response = await send("POST", path, body, options);
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "", whole = false;
  try {
    for (;;) {
      let piece;
      try { piece = await reader.read(); } catch (error) {
        if (stopped(error)) throw error;
        throw new Failure("The connection to the server broke; nothing of this turn was kept.");
      }
      if (piece.done && whole) return;
      if (piece.done) throw new Failure("The server's answer broke off; nothing of this turn was kept.");
      const lines = (rest + decoder.decode(piece.value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") { whole = true; continue; }
        const event = JSON.parse(data);
        if (event.error) throw new Failure(sentence(event.error.message ?? "The server failed."));
        yield event;
      }
    }
  } finally {
    if (!whole) reader.cancel().catch(() => {});
  }
}

const at = (session, rest = "") => `v1/memory/${encodeURIComponent(session)}${rest}`;

export const models = async () => (await json("GET", "v1/models")).data.map((model) => model.id);
export const sessions = (after) => json("GET", `v1/memory?limit=100${after ? `&after=${encodeURIComponent(after)}` : ""}`);
export const session = (id) => json("GET", at(id));
export const history = (id) => json("GET", at(id, "/export"));
export const edit = (id, memory, turn) => json("PUT", at(id), { memory, turn });
export const remove = (id) => json("DELETE", at(id));
export const removeAll = () => json("DELETE", "v1/memory");
export const ask = (id, question, model, signal) => json("POST", at(id, "/ask"), { question, model }, { signal });
export const read = (id, text, question, model, signal) =>
  events(at(id, "/read"), { text, model, stream: true, ...(question ? { question } : {}) }, { signal });
export const chat = (id, content, model, signal) =>
  events("v1/chat/completions", {
    model, stream: true, stream_options: { include_usage: true }, messages: [{ role: "user", content }],
  }, { signal, headers: { "X-Session-Id": id } });
