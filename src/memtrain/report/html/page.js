"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const data = (id) => JSON.parse(get(id).textContent);

  // Texts go in as text nodes only: nothing that a run says is read as markup.
  function make(name, attributes, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === true) node.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
    }
    for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
    return node;
  }

  /* charts: what the pointer or the arrow keys stand on */
  const LEFT = 46, RIGHT = 10, WIDTH = 380;
  const tip = get("tip");
  const charts = data("chart-data");
  const shown = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

  function nearest(sorted, x) {
    let low = 0, high = sorted.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(sorted[low] - x) <= Math.abs(sorted[high] - x) ? low : high;
  }

  function watch(figure) {
    const chart = charts[figure.dataset.chart], svg = figure.querySelector("svg");
    const cursor = svg.querySelector(".cursor");
    const steps = [...new Set(chart.s.flatMap((line) => line.x))].sort((a, b) => a - b);
    let at = steps.length - 1;

    function show(place) {
      at = Math.max(0, Math.min(steps.length - 1, place));
      const step = steps[at], span = chart.x[1] - chart.x[0];
      const x = LEFT + ((step - chart.x[0]) / span) * (WIDTH - LEFT - RIGHT);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.removeAttribute("hidden");
      const rows = chart.s.filter((line) => line.x.includes(step)).map((line) =>
        make("div", {}, make("span", {}, line.n), make("b", {}, shown.format(line.y[line.x.indexOf(step)]))));
      tip.replaceChildren(make("div", {}, make("span", {}, `step ${step}`)), ...rows);
      tip.hidden = false;
      const box = svg.getBoundingClientRect(), width = tip.offsetWidth;
      const left = box.left + (x / WIDTH) * box.width + 12;
      const most = document.documentElement.clientWidth - width - 8;
      tip.style.left = `${(left > most ? Math.max(8, left - width - 24) : left) + window.scrollX}px`;
      tip.style.top = `${box.top + 6 + window.scrollY}px`;
    }
    function hide() {
      cursor.setAttribute("hidden", "");
      tip.hidden = true;
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * WIDTH;
      show(nearest(steps, chart.x[0] + ((x - LEFT) / (WIDTH - LEFT - RIGHT)) * (chart.x[1] - chart.x[0])));
    });
    svg.addEventListener("pointerleave", hide);
    figure.addEventListener("blur", hide);
    figure.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  }
  document.querySelectorAll("figure[data-chart]").forEach(watch);

  /* where the reader is, in the bar above */
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const sections = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      const link = links.get(entry.target.id);
      if (!link) continue;
      link.setAttribute("aria-current", "true");
      link.parentElement.scrollLeft = link.offsetLeft - link.parentElement.offsetLeft - 24;
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  document.querySelectorAll("main > section").forEach((section) => sections.observe(section));

  /* the memory viewer */
  const viewer = get("viewer");
  if (!viewer) return;
  const runs = data("viewer-data").runs.filter((run) => run.groups.length);
  const state = { run: 0, group: 0, document: 0, reading: 0 };

  // One stop for Tab, arrow keys inside: tabs and lists.
  function choosable(node, items, role, selected, pick, previous, next) {
    const nodes = items.map((content, place) => {
      const item = make(role === "tab" ? "button" : "li", {
        role, "aria-selected": place === selected ? "true" : "false", tabindex: place === selected ? 0 : -1,
        type: role === "tab" ? "button" : null,
      }, content);
      item.addEventListener("click", () => choose(place));
      return item;
    });
    function choose(place) {
      nodes.forEach((item, n) => {
        item.setAttribute("aria-selected", n === place ? "true" : "false");
        item.tabIndex = n === place ? 0 : -1;
      });
      nodes[place].focus({ preventScroll: true });
      nodes[place].scrollIntoView({ block: "nearest", behavior: "instant" });
      pick(place);
    }
    node.addEventListener("keydown", (event) => {
      const now = nodes.indexOf(document.activeElement);
      const to = { [previous]: now - 1, [next]: now + 1, Home: 0, End: nodes.length - 1 }[event.key];
      if (now < 0 || to === undefined) return;
      event.preventDefault();
      if (nodes[to]) choose(to);
    });
    node.replaceChildren(...nodes);
    return node;
  }
  const tabs = (label, items, selected, pick) =>
    choosable(make("div", { class: "tabs", role: "tablist", "aria-label": label }), items, "tab", selected, pick,
      "ArrowLeft", "ArrowRight");

  function prose(pieces, kept) {
    const box = make("div", { class: "prose" });
    for (const [text, op, kind, reference] of pieces) {
      let node = document.createTextNode(text);
      if (kind === "h") node = make("mark", { class: "h", title: "hidden entity" }, node);
      if (kind === "p") node = make("mark", { class: "p", "data-n": reference, title: `asked for by probe ${reference}` }, node);
      if (kind === "e") {
        const inside = kept === null || kept.has(Number(reference));
        node = make("span", { class: inside ? "e kept" : "e", "data-e": reference }, node);
      }
      if (op === 1) node = make("ins", {}, node);
      if (op === -1) node = make("del", {}, node);
      box.append(node);
    }
    return box;
  }
  const sign = (right) => (right === true ? ["✓ right", "good"] : right === false ? ["✗ wrong", "bad"] : null);
  const judged = (right) => sign(right) && make("span", { class: sign(right)[1] }, sign(right)[0]);

  function probe(one) {
    const later = one.k - 1 - one.l;
    const where = `chunk ${one.l + 1}, ${later === 0 ? "just read" : later === 1 ? "1 chunk ago" : `${later} chunks ago`}`;
    return make("li", {},
      make("span", { class: "n", title: `probe ${one.n}` }, String(one.n)),
      make("span", {}, make("b", {}, one.gold), " ", make("span", { class: "unit" }, where)),
      one.answer === null ? make("span", { class: "none" }, "scored, no answer sampled") : make("q", {}, one.answer),
      make("span", {}, judged(one.right), one.reward === null ? null : make("span", { class: "unit" }, ` ${one.measure} ${one.reward}`)));
  }

  function steps(text, reading) {
    const first = reading.memories.length ? reading.memories[0].k : 1;
    const last = reading.memories.length ? reading.memories.at(-1).k : 0;
    const atLast = new Set(reading.memories.length ? reading.memories.at(-1).kept : []);
    const rows = [];
    for (let k = text.whole ? first : 1; k <= Math.max(last, text.whole ? 0 : text.chunks.length); k += 1) {
      const memory = reading.memories.find((one) => one.k === k);
      const chunk = text.whole ? null : text.chunks[k - 1];
      const kept = memory ? new Set(memory.kept) : null;
      const asked = reading.probes.filter((one) => one.k === k);
      const counted = memory && text.entities ? `${memory.kept.length} of the text’s ${text.entities} entities` : "";
      const after = make("div", { class: memory && memory.cut ? "memory cutoff" : "memory" },
        make("h4", {}, `Memory ${k}`, make("em", {}, counted),
          memory && memory.cut ? make("em", { class: "cut" }, "cut at the limit") : null),
        memory && memory.p.length ? prose(memory.p, null)
          : make("p", { class: "none" }, memory ? "empty" : "not kept by this run"));
      rows.push(make("article", { class: chunk ? "step" : "step alone", tabindex: 0, "aria-label": `Step ${k}` },
        chunk ? make("div", { class: "chunk" }, make("h4", {}, text.heading === "chunk" ? `Chunk ${k}` : `Prompt ${k} of the best trajectory`),
          prose(chunk, memory ? kept : atLast)) : null,
        after,
        asked.length ? make("ul", { class: "probes", "aria-label": `Probes of memory ${k}` }, asked.map(probe)) : null));
    }
    return rows;
  }

  function row(name, ...values) {
    return [make("dt", {}, name), make("dd", {}, ...values)];
  }

  function showReading(pane, text, place) {
    const reading = text.readings[place];
    const told = make("dl", { class: "said" },
      text.gold ? row(text.heading === "chunk" ? "hidden" : "expected", make("mark", { class: "h" }, text.gold)) : null,
      reading.answer === null ? null : row("answer", reading.right === null ? null : [judged(reading.right), " "], reading.answer || "(empty)"),
      reading.facts.length ? row("measured", reading.facts.map(([name, value]) => `${name} ${value}`).join(" · ")) : null,
      reading.missing ? row("note", reading.missing) : null);
    const whole = text.whole ? make("details", {}, make("summary", {}, "The text (borders of its chunks were not kept)"),
      prose(text.chunks[0], null)) : null;
    const body = steps(text, reading);
    pane.replaceChildren(told, ...(whole ? [whole] : []), ...body);
    pane.onkeydown = (event) => {
      const now = body.indexOf(document.activeElement);
      const to = { ArrowUp: now - 1, ArrowDown: now + 1, Home: 0, End: body.length - 1 }[event.key];
      if (now < 0 || to === undefined) return;
      event.preventDefault();
      if (body[to]) {
        body[to].focus({ preventScroll: true });
        body[to].scrollIntoView({ block: "nearest", behavior: "instant" });
      }
    };
  }

  // The same kind of reading of the next document: "after", or the best trajectory whatever its number.
  const kind = (reading) => reading.label.split(", ").pop();
  const wanted = {};
  function showDocument(pane, text, group) {
    const known = text.readings.findIndex((one) => kind(one) === wanted[group.title]);
    state.reading = known >= 0 ? known : group.newest ? text.readings.length - 1 : 0;
    const inner = make("div", {});
    const bar = tabs("readings", text.readings.map((one) => one.label), state.reading, (place) => {
      wanted[group.title] = kind(text.readings[place]);
      showReading(inner, text, place);
    });
    pane.replaceChildren(bar, inner);
    showReading(inner, text, state.reading);
  }

  function judgements(text) {
    const known = text.readings.filter((one) => one.right !== null);
    const said = known.map((one) => `${one.label}: ${one.right ? "right" : "wrong"}`).join(", ");
    return known.length ? make("span", { class: "judged", title: said, "aria-label": said, role: "img" },
      known.map((one) => (one.right ? "✓" : "✗")).join("")) : null;
  }

  function draw() {
    const run = runs[state.run], group = run.groups[state.group];
    const pane = make("div", { class: "reading" });
    const list = choosable(
      make("ul", { class: "documents", role: "listbox", "aria-label": "documents" }),
      group.documents.map((text) => [judgements(text), make("b", {}, text.id),
        make("span", { class: "about" }, [text.gold, text.about].filter(Boolean).join(" · "))]),
      "option", state.document,
      (place) => {
        state.document = place;
        showDocument(pane, group.documents[place], group);
      }, "ArrowUp", "ArrowDown");
    content.replaceChildren(list, pane);
    note.textContent = group.note;
    showDocument(pane, group.documents[state.document], group);
  }

  function groupTabs() {
    kinds.replaceChildren(tabs("kinds of reading", runs[state.run].groups.map((group) => group.title), state.group, (place) => {
      state.group = place;
      state.document = 0;
      draw();
    }));
  }
  const toggle = (label, name) => {
    const box = make("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => content.classList.toggle(name, !box.checked));
    return make("label", {}, box, label);
  };
  const content = make("div", { class: "panes" }), kinds = make("div", {}), note = make("span", { class: "fine" });
  const runTabs = runs.length > 1 ? tabs("runs", runs.map((run) => run.name), 0, (place) => {
    Object.assign(state, { run: place, group: 0, document: 0 });
    groupTabs();
    draw();
  }) : null;
  viewer.replaceChildren(
    make("div", { class: "bar" }, runTabs, kinds, note, toggle("lost words", "nolost"), toggle("entities", "plain")), content);
  groupTabs();
  draw();

  // An entity in a chunk and in the memory point at each other.
  function point(event) {
    viewer.querySelectorAll(".hot").forEach((node) => node.classList.remove("hot"));
    const entity = event.target.closest?.("[data-e]");
    if (!entity || event.type === "pointerout") return;
    const step = entity.closest(".step");
    step?.querySelectorAll(`[data-e="${Number(entity.dataset.e)}"]`).forEach((node) => node.classList.add("hot"));
  }
  viewer.addEventListener("pointerover", point);
  viewer.addEventListener("pointerout", point);
})();
