// The page: asks, shows the answer as it comes with its sources, and keeps the documents. Text goes in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const count = new Intl.NumberFormat();
let libraries = [];
let asking = null; // the AbortController of answers under way
let next = null; // where the list of documents goes on

class Refused extends Error {}

async function call(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let reply;
  try {
    reply = await fetch(path, { ...options, headers });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Refused("The server does not answer.");
  }
  if (reply.status === 401) $("key-form").hidden = false;
  if (!reply.ok) throw new Refused(await reason(reply));
  return reply;
}

async function reason(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `${reply.status} ${reply.statusText}`;
  }
}

const json = (method, content) => ({ method, headers: { "content-type": "application/json" }, body: JSON.stringify(content) });
const here = () => libraries.find((l) => l.library === $("library").value);
const path = (library, rest) => `/v1/libraries/${encodeURIComponent(library)}/${rest}`;

function told(problem) {
  $("error").textContent = problem ? problem.message : "";
  $("error").hidden = !problem;
}

async function guarded(work) {
  try {
    told(null);
    return await work();
  } catch (problem) {
    if (problem.name !== "AbortError") told(problem);
  }
}

function bytes(number) {
  for (const unit of ["B", "kB", "MB"]) {
    if (number < 1000) return `${number.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    number /= 1000;
  }
  return `${number.toFixed(1)} GB`;
}

// -- libraries

async function loadLibraries() {
  libraries = (await (await call("/v1/libraries")).json()).libraries;
  $("key-form").hidden = true;
  const before = $("library").value;
  $("library").replaceChildren(...libraries.map((l) => new Option(`${l.library} (${l.ratio}x)`, l.library)));
  if (libraries.some((l) => l.library === before)) $("library").value = before;
  await showLibrary();
}

async function showLibrary() {
  const library = here();
  if (!library) return;
  const sizes = [`${count.format(library.documents)} documents`];
  if (library.source_tokens !== undefined) {
    sizes.push(`${count.format(library.source_tokens)} tokens`, `${bytes(library.kv_bytes)} of memory`, `read by ${library.model}`);
  }
  $("sizes").textContent = sizes.join(" · ");
  $("add").hidden = !library.writable;
  $("others").replaceChildren(
    ...libraries.filter((l) => l !== library).map((l) => {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", value: l.library, name: "other" });
      label.append(box, ` ${l.library} (${l.ratio}x)`);
      return label;
    }),
  );
  await loadDocuments();
}

// -- asking

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const [name, data] = block.split("\n");
      yield [name.slice("event: ".length), JSON.parse(data.slice("data: ".length))];
    }
  }
}

function column(title) {
  const shape = $("answer-shape").content.cloneNode(true).firstElementChild;
  shape.querySelector("h3").textContent = title;
  shape.querySelector(".answer").classList.add("busy");
  $("answers").append(shape);
  return shape;
}

async function answer(library, text, question, signal) {
  const shape = column(text ? `${library.library}, as text` : `${library.library}, ${library.ratio}x memory`);
  const shown = shape.querySelector(".answer");
  const fidelity = text ? "memory" : $("fidelity").value;
  const settings = { k: Number($("k").value), max_new_tokens: Number($("tokens").value), fidelity };
  const body = { question, text, stream: true, heat: $("heat").checked && !text, settings };
  try {
    const reply = await call(path(library.library, "ask"), { ...json("POST", body), signal });
    for await (const [kind, content] of events(reply)) {
      if (kind === "piece") shown.append(content.text);
      else if (kind === "answer") finish(shape, library, content);
      else throw new Refused(content.error.message);
    }
  } catch (problem) {
    const stopped = problem.name === "AbortError";
    note(shape, stopped ? "stopped" : problem.message, !stopped);
  } finally {
    shown.classList.remove("busy");
  }
}

function note(shape, text, bad = false) {
  const line = document.createElement("li");
  line.textContent = text;
  line.classList.toggle("bad", bad);
  shape.querySelector(".notices").append(line);
}

function finish(shape, library, content) {
  shape.querySelector(".answer").textContent = content.answer;
  for (const text of content.notices ?? []) note(shape, text);
  if (content.finish_reason === "length") note(shape, "cut at the limit of tokens");
  const { usage, timings, heat, evidence = [] } = content;
  const facts = {
    "first token": `${timings.first_token_s.toFixed(3)} s`,
    "in all": `${timings.total_s.toFixed(3)} s`,
    "tokens attended": `${count.format(usage.attended_tokens)}, for ${count.format(usage.source_tokens)} of the text`,
    "in the cache": bytes(usage.attended_tokens * library.slot_bytes),
    confidence: content.confidence.toFixed(2) + (content.doubtful ? ", doubtful" : ""),
    "read as": content.fidelity + (content.fell_back ? ", after a doubtful answer from memory" : ""),
  };
  if (heat) facts["attention on the anchors"] = `${(100 * heat.passages).toFixed(1)} %`;
  const list = shape.querySelector("dl");
  for (const [name, value] of Object.entries(facts)) {
    list.append(
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    );
  }
  const hottest = Math.max(...content.sources.flatMap((s) => (s.heat ?? []).map(([, , share]) => share)));
  shape.querySelector(".of-marks").hidden = !content.sources.some((s) => s.answer_span);
  shape.querySelector(".of-read").hidden = !evidence.length;
  shape.querySelector(".of-heat").hidden = !(hottest > 0);
  shape.querySelector(".most").textContent = percent(hottest);
  shape.querySelector(".sources").append(...content.sources.map((s, index) => source(s, index, hottest, evidence)));
}

const percent = (share) => `${(100 * share).toFixed(2)} %`;

// The text of a passage from `start` to `end`, its anchors as hot as their share of the hottest.
function* pieces(points, heat, start, end, hottest) {
  let at = start;
  for (const [from, to, share] of heat) {
    const [first, last] = [Math.max(from, at), Math.min(to, end)];
    if (first >= last) continue;
    yield points.slice(at, first).join("");
    const anchor = document.createElement("span");
    anchor.className = "anchor";
    anchor.textContent = points.slice(first, last).join("");
    anchor.title = `${percent(share)} of the attention`;
    anchor.style.setProperty("--heat", (share / hottest).toFixed(3));
    yield anchor;
    at = last;
  }
  yield points.slice(at, end).join("");
}

const wrapped = (name, nodes) => {
  const element = document.createElement(name);
  element.append(...nodes);
  return element;
};

function source(passage, index, hottest, evidence) {
  const item = document.createElement("li");
  const details = document.createElement("details");
  const heat = passage.heat ?? [];
  const read = evidence.filter((sentence) => sentence.passage === passage.id).map(({ start, end }) => [start, end]);
  details.open = index === 0 || passage.answer_span !== null || heat.length > 0 || read.length > 0;
  const summary = document.createElement("summary");
  const where = passage.heading ? ` › ${passage.heading}` : "";
  summary.textContent = `${passage.document}${where}, ${passage.start} to ${passage.end}, score ${passage.score.toFixed(2)}`;
  const text = document.createElement("p");
  // Spans count characters as Python does: whole code points.
  const points = Array.from(passage.text);
  const answers = passage.answer_span ? [passage.answer_span] : [];
  const cuts = [...new Set([0, points.length, ...answers.flat(), ...read.flat()])].sort((a, b) => a - b);
  for (const [at, end] of cuts.slice(1).entries()) {
    const within = ([from, to]) => from <= cuts[at] && end <= to;
    let nodes = [...pieces(points, heat, cuts[at], end, hottest)];
    if (read.some(within)) nodes = [wrapped("u", nodes)];
    if (answers.some(within)) nodes = [wrapped("mark", nodes)];
    text.append(...nodes);
  }
  details.append(summary, text);
  item.append(details);
  return item;
}

async function ask() {
  const question = $("question").value.trim();
  const library = here();
  if (!question || !library) return;
  asking?.abort();
  const mine = (asking = new AbortController());
  $("answers").replaceChildren();
  $("stop").hidden = false;
  const others = [...document.querySelectorAll('input[name="other"]:checked')].map((box) => box.value);
  const ways = [[library, false], ...($("as-text").checked ? [[library, true]] : [])];
  for (const name of others) ways.push([libraries.find((l) => l.library === name), false]);
  // One after the other: times are to be compared.
  for (const [from, text] of ways) {
    if (!mine.signal.aborted) await answer(from, text, question, mine.signal);
  }
  if (asking === mine) $("stop").hidden = true;
}

// -- documents

async function loadDocuments(more = false) {
  const after = more && next ? `?after=${encodeURIComponent(next)}` : "";
  const page = await (await call(path(here().library, `documents${after}`))).json();
  next = page.next ?? null;
  const rows = page.documents.map(documentRow);
  if (more) $("documents").append(...rows);
  else $("documents").replaceChildren(...rows);
  $("more").hidden = !next;
  showFiltered();
}

function documentRow(stored) {
  const row = document.createElement("tr");
  row.dataset.name = stored.document;
  for (const value of [stored.document, count.format(stored.passages), count.format(stored.tokens)]) {
    row.append(Object.assign(document.createElement("td"), { textContent: value }));
  }
  const cell = document.createElement("td");
  if (here().writable) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Remove" });
    button.setAttribute("aria-label", `Remove ${stored.document}`);
    button.addEventListener("click", () => remove(button, stored.document));
    button.addEventListener("blur", () => sure(button, stored.document, false));
    cell.append(button);
  }
  row.append(cell);
  return row;
}

function sure(button, name, asked) {
  button.classList.toggle("bad", asked);
  button.textContent = asked ? "Really remove?" : "Remove";
  button.setAttribute("aria-label", `${button.textContent} ${name}`);
}

function remove(button, name) {
  if (!button.classList.contains("bad")) return sure(button, name, true);
  return guarded(async () => {
    await call(path(here().library, "documents"), json("DELETE", { documents: [name] }));
    await loadLibraries();
    $("filter").focus();
  });
}

async function add(files) {
  const library = here().library;
  for (const file of files) {
    const line = document.createElement("li");
    const bar = Object.assign(document.createElement("progress"), { max: 1 });
    const label = document.createElement("span");
    label.textContent = `${file.name}: sending`;
    line.append(label, bar);
    $("progress").append(line);
    try {
      const query = `documents?document=${encodeURIComponent(file.name)}`;
      const options = { method: "PUT", body: file, headers: { accept: "application/x-ndjson" } };
      const reply = await call(path(library, query), options);
      for await (const content of lines(reply)) {
        if (content.error) throw new Refused(content.error.message);
        if (content.progress) {
          label.textContent = `${file.name}: ${content.progress.step}`;
          bar.value = content.progress.share;
        } else {
          label.textContent = `${file.name}: ${done(content.report)}`;
        }
      }
      for (const problem of line.querySelectorAll("progress")) problem.remove();
    } catch (problem) {
      label.textContent = `${file.name}: ${problem.message}`;
      line.classList.add("bad");
      bar.remove();
    }
  }
  await loadLibraries();
}

const done = (r) => (r.unchanged ? "was there already" : `${r.added ? "added" : "changed"}, ${count.format(r.passages)} passages in ${r.seconds.toFixed(1)} s`);

async function* lines(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done: over, value } = await reader.read();
    if (over) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

function showFiltered() {
  const wanted = $("filter").value.toLowerCase();
  for (const row of $("documents").children) row.hidden = !row.dataset.name.toLowerCase().includes(wanted);
}

// -- what people do

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(ask);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") asking?.abort();
});
$("stop").addEventListener("click", () => asking?.abort());
$("k").addEventListener("input", () => ($("k-shown").value = $("k").value));
$("library").addEventListener("change", () => guarded(showLibrary));
$("filter").addEventListener("input", showFiltered);
$("more").addEventListener("click", () => guarded(() => loadDocuments(true)));
$("files").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  guarded(() => add(files));
});
$("add").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (here()?.writable) guarded(() => add([...event.dataTransfer.files]));
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  guarded(loadLibraries);
});
guarded(loadLibraries);
