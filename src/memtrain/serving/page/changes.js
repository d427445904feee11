// What changed from one memory to the next: [["same" | "added" | "lost", text], ...] in reading order. Same and added
// joined are the new text. The rules are those of memtrain report (report/html/diff.py): words, or signs of scripts
// that are written without spaces; what two texts share by chance between two changes counts as changed.

const UNSPACED = "\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff\\u3040-\\u30ff\\u3400-\\u4dbf\\u4e00-\\u9fff\\uf900-\\ufaff";
const TOKEN = new RegExp(`(?:[${UNSPACED}]|(?:(?![${UNSPACED}])[\\p{L}\\p{N}\\p{M}_])+|[^\\s])\\s*|\\s+`, "gu");
const SHORT = 3;
const MOST_CELLS = 4_000_000;

// A word with the white space after it; white space alone makes no change.
const tokens = (text) => text.match(TOKEN) ?? [];
const key = (token) => token.trimEnd();

export function changed(before, after) {
  const a = tokens(before), b = tokens(after);
  let start = 0, end = 0;
  const shorter = Math.min(a.length, b.length);
  while (start < shorter && key(a[start]) === key(b[start])) start++;
  while (end < shorter - start && key(a[a.length - 1 - end]) === key(b[b.length - 1 - end])) end++;
  const middle = between(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const same = (from, to) => (from < to ? [["same", b.slice(from, to).join("")]] : []);
  return readable([...same(0, start), ...runs(middle), ...same(b.length - end, b.length)]);
}

// Pairs of kind and [old, new] token, by the longest common subsequence.
function between(a, b) {
  const lost = a.map((token) => ["lost", token, ""]), added = b.map((token) => ["added", "", token]);
  if (!a.length || !b.length || a.length * b.length > MOST_CELLS) return [...lost, ...added];
  const n = a.length, m = b.length, wide = m + 1;
  const length = new Uint32Array((n + 1) * wide);                                // of what follows i and j
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      length[i * wide + j] = key(a[i]) === key(b[j])
        ? length[(i + 1) * wide + j + 1] + 1
        : Math.max(length[(i + 1) * wide + j], length[i * wide + j + 1]);
    }
  }
  const found = [];
  let i = 0, j = 0;
  while (i < n && j < m) {
    if (key(a[i]) === key(b[j])) found.push(["same", a[i++], b[j++]]);
    else if (length[(i + 1) * wide + j] >= length[i * wide + j + 1]) found.push(lost[i++]);
    else found.push(added[j++]);
  }
  return [...found, ...lost.slice(i), ...added.slice(j)];
}

// Neighbours of one kind as one; a kept run by chance as lost and added.
function* runs(steps) {
  for (let i = 0; i < steps.length;) {
    const kind = steps[i][0];
    let old = "", now = "";
    for (; i < steps.length && steps[i][0] === kind; i++) { old += steps[i][1]; now += steps[i][2]; }
    if (kind === "lost") yield [kind, old];
    else if (kind === "added" || !byChance(now)) yield [kind, now];
    else { yield ["lost", old]; yield ["added", now]; }
  }
}

// Signs alone, or one short word in small letters.
function byChance(text) {
  const letters = text.replace(/[^\p{L}\p{N}]/gu, "");
  return !letters || (letters.length <= SHORT && letters === letters.toLowerCase() && letters !== letters.toUpperCase());
}

// Between two kept pieces at most one lost and one added, in this order.
function readable(pairs) {
  const found = [];
  let lost = "", added = "";
  const flush = () => {
    if (lost) found.push(["lost", lost]);
    if (added) found.push(["added", added]);
    lost = added = "";
  };
  for (const [kind, text] of pairs) {
    if (kind === "lost") lost += text;
    else if (kind === "added") added += text;
    else { flush(); found.push(["same", text]); }
  }
  flush();
  return found;
}

export const countWords = (text) => text.match(/\S+/g)?.length ?? 0;
