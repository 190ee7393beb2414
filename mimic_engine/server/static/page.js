// The page: reads what the service offers, asks it, and shows its answers. Nothing is computed here.
import { $, clearAnswer, h, show } from "./answer.js";

const PLAIN = {
  queue_full: "The service is busy right now.",
  not_ready: "The service is starting, or about to stop.",
  deadline_exceeded: "This took longer than it may.",
  too_large: "That is more than the service takes.",
  image_type: "This kind of picture cannot be read.",
  invalid_image: "This picture is damaged.",
  unauthorised: "This needs a key.",
  forbidden: "This key does not allow that.",
  internal: "Something went wrong inside the service.",
  offline: "The service cannot be reached.",
  picture: "The entity has a picture.",
};
const SHOWN = matchMedia("(max-width: 520px)").matches ? 5 : 8; // entities
const SETTLE_MS = 350; // a selection that has not changed for so long is asked

let info = null; // what GET v1/info says
let offers = { explain: false, nil_threshold: false, edit: false };
let mark = null; // [start, end] of the mention in the sentence, in UTF-16 units
let before = ""; // the sentence as it was before the latest edit
let picture = null; // Blob
let chosen = null; // the button of the example that is shown
let edited = null; // { entity, remove } of the dialog; entity is null while one is added
let asking = null; // AbortController of the request under way
let changes = 0; // made here: a picture may be another one since
let timer = 0;
const known = new Map(); // id -> promise of the entity

// ---- talking to the service ----

class Refused extends Error {
  constructor(code, message, waitS = 0) {
    super(message);
    this.code = code;
    this.waitS = waitS;
  }
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("offline", "It may have stopped, or the connection is down.");
  }
  if (response.ok) return response;
  const { error = {} } = await response.json().catch(() => ({}));
  const id = error.id ? ` (${error.id})` : "";
  const message = `${error.message ?? `It answered with status ${response.status}.`}${id}`;
  throw new Refused(error.code, message, Number(response.headers.get("retry-after")) || 0);
}

const json = async (path) => (await call(path)).json();
const addressOf = (id) => encodeURIComponent(id);

const entities = {
  get(id) {
    if (!known.has(id)) known.set(id, json(`v1/entities/${addressOf(id)}`));
    known.get(id).catch(() => known.delete(id));
    return known.get(id);
  },
  picture: ({ id }) => `v1/images/${addressOf(id)}?change=${changes}`,
  actions: (entity) => (offers.edit ? actions(entity) : null),
};

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Refused("invalid_image", "The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

async function link() {
  clearTimeout(timer);
  const mention = $("mention").value.trim();
  if (!mention) return say("Select the words in the sentence that name something, or type them below it.");
  asking?.abort();
  const mine = (asking = new AbortController());
  const body = { mention, sentence: $("sentence").value };
  $("ranking").classList.add("stale");
  try {
    if (info) body.top_k = Math.min(SHOWN, info.entities, info.limits.max_top_k);
    if (offers.explain) body.explain = true;
    if (!$("names-field").hidden && !$("names").checked) body.names = false;
    askForNil(body);
    if (picture) body.image = await base64(picture);
    const began = performance.now();
    const headers = { "content-type": "application/json" };
    const options = { method: "POST", headers, body: JSON.stringify(body), signal: mine.signal };
    const response = await call("v1/link", options);
    const result = await response.json();
    if (mine !== asking) return;
    tell(null);
    const header = response.headers.get("server-timing") ?? "";
    show(result, body, { spentMs: performance.now() - began, header }, entities);
  } catch (error) {
    if (error.name === "AbortError" || mine !== asking) return;
    clearAnswer();
    tell(error, link);
  } finally {
    if (mine === asking) $("ranking").classList.remove("stale");
  }
}

function askForNil(body) {
  const given = $("threshold").value.trim().replace(",", ".");
  if (!offers.nil_threshold) return;
  if (given) body.nil_threshold = Number(given);
  else if (info?.linker.nil_threshold && body.names !== false) body.nil = true; // by the model's own threshold
}

function soon(waitMs = SETTLE_MS) {
  clearTimeout(timer);
  timer = setTimeout(link, waitMs);
}

// ---- saying what happened ----

function say(text) {
  $("status").textContent = text;
}

function tell(error, again = null, box = $("problem")) {
  box.hidden = error === null;
  if (error === null) return;
  const full = error.code === "queue_full";
  const detail = full ? `As much is waiting as it takes on. It asks for ${seconds(error.waitS)} before the next try.` : error.message;
  box.replaceChildren(h("strong", {}, PLAIN[error.code] ?? "The service cannot answer this."), detail);
  if (again === null) return;
  say("");
  const button = h("button", { type: "button", class: "quiet", onclick: again }, "Try again");
  if (error.waitS) countDown(button, error.waitS);
  if (error.waitS || ["offline", "not_ready", "internal", "deadline_exceeded"].includes(error.code)) {
    box.append(h("div", {}, button));
  }
}

const seconds = (n) => (n === 1 ? "1 second" : `${n} seconds`);

function countDown(button, left) {
  button.disabled = left > 0;
  button.textContent = left > 0 ? `Try again in ${seconds(left)}` : "Try again";
  if (left > 0) setTimeout(() => countDown(button, left - 1), 1000);
}

// ---- the sentence and its mention ----

function paint() {
  const text = $("sentence").value;
  const pieces = mark ? [text.slice(0, mark[0]), h("mark", {}, text.slice(...mark)), text.slice(mark[1])] : [text];
  $("ink").replaceChildren(...pieces, "\u200b");
  before = text;
}

// Keep the mark on its words while the sentence around or inside it is edited.
function follow() {
  const text = $("sentence").value;
  const most = Math.min(text.length, before.length);
  let [head, tail] = [0, 0];
  while (head < most && text[head] === before[head]) head++;
  while (tail < most - head && text.at(-1 - tail) === before.at(-1 - tail)) tail++;
  const [grown, end] = [text.length - before.length, before.length - tail]; // before[head:end] was replaced
  if (mark) {
    const [from, to] = mark;
    if (end <= from) mark = [from + grown, to + grown];
    else if (head >= from && end <= to && to + grown > from) mark = [from, to + grown];
    else if (head < to) mark = null;
    $("mention").value = mark ? text.slice(...mark) : "";
  }
  forgetExample();
  paint();
}

function takeSelection() {
  const box = $("sentence");
  if (document.activeElement !== box) return;
  let { selectionStart: from, selectionEnd: to } = box;
  while (from < to && /\s/.test(box.value[from])) from++;
  while (to > from && /\s/.test(box.value[to - 1])) to--;
  const all = to - from === box.value.trim().length; // about to be replaced rather than meant
  if (from === to || all || (mark && mark[0] === from && mark[1] === to)) return;
  mark = [from, to];
  $("mention").value = box.value.slice(from, to);
  paint();
  soon();
}

function findMention() {
  const words = $("mention").value.trim();
  const [text, low] = [$("sentence").value, $("sentence").value.toLowerCase()];
  const at = text.includes(words) ? text.indexOf(words) : low.indexOf(words.toLowerCase());
  mark = words && at >= 0 ? [at, at + words.length] : null;
  forgetExample();
  paint();
}

function setPicture(blob) {
  picture = blob;
  if ($("preview").src) URL.revokeObjectURL($("preview").src);
  if (blob) $("preview").src = URL.createObjectURL(blob);
  else $("preview").removeAttribute("src");
  $("preview").hidden = $("clear").hidden = !blob;
  $("drop").classList.toggle("full", Boolean(blob));
  $("file").value = "";
}

function takePicture(files) {
  const [file] = files;
  if (!file) return false;
  forgetExample();
  setPicture(file);
  if ($("mention").value.trim()) soon(0);
  return true;
}

// ---- examples ----

function forgetExample() {
  chosen?.setAttribute("aria-pressed", "false");
  chosen = null;
}

async function choose(example, button) {
  forgetExample();
  chosen = button;
  button.setAttribute("aria-pressed", "true");
  const at = example.sentence.indexOf(example.mention);
  $("sentence").value = example.sentence;
  $("mention").value = example.mention;
  mark = at < 0 ? null : [at, at + example.mention.length];
  paint();
  try {
    const blob = example.image ? await (await call(example.image)).blob() : null;
    if (chosen !== button) return;
    setPicture(blob);
    await link();
  } catch (error) {
    tell(error, () => choose(example, button));
  }
}

function showExamples(examples) {
  const groups = Map.groupBy
    ? Map.groupBy(examples, (each) => each.sentence)
    : examples.reduce((all, each) => all.set(each.sentence, [...(all.get(each.sentence) ?? []), each]), new Map());
  const items = [...groups.values()].map((group) => {
    const { sentence, mention } = group[0];
    const at = Math.max(0, sentence.indexOf(mention));
    const says = h("p", { class: "says" }, sentence.slice(0, at), h("mark", {}, mention), sentence.slice(at + mention.length));
    const buttons = group.map((each, i) => {
      const label = `${sentence} ${each.image ? `With picture ${i + 1} of ${group.length}` : "Without a picture"}`;
      const inside = each.image ? h("img", { src: each.image, alt: "" }) : "Aa";
      const button = h("button", { type: "button", class: "choice", "aria-pressed": "false", "aria-label": label }, inside);
      button.addEventListener("click", async (event) => {
        await choose(each, button);
        const top = $("answer-title").getBoundingClientRect().top;
        if (event.isTrusted && (top < 0 || top > innerHeight)) $("answer-title").scrollIntoView({ behavior: "smooth" });
      });
      return button;
    });
    return h("li", {}, says, h("div", { class: "choices" }, ...buttons));
  });
  $("example-list").replaceChildren(...items);
  $("examples").hidden = !examples.length;
}

// ---- changing the knowledge base, where the service offers it ----

function actions(entity) {
  const edit = h("button", { type: "button", class: "quiet", onclick: () => openEditor(entity) }, "Edit");
  const remove = h("button", { type: "button", class: "quiet", onclick: () => openEditor(entity, true) }, "Remove");
  return h("div", { class: "actions" }, edit, remove);
}

function openEditor(entity, remove = false) {
  edited = { entity, remove };
  $("editor-title").textContent = remove ? `Remove ${entity.name}` : entity ? `Edit ${entity.name}` : "Add an entity";
  for (const name of ["id", "name", "type", "description"]) $(`entity-${name}`).value = entity?.[name] ?? "";
  $("entity-id").readOnly = Boolean(entity);
  $("entity-picture").value = "";
  for (const field of document.querySelectorAll("#entity .field")) field.hidden = remove && !field.querySelector("#key");
  $("save").textContent = remove ? "Remove" : "Save";
  $("entity-problem").hidden = true;
  $("editor").showModal();
  $(remove ? "key" : entity ? "entity-name" : "entity-id").focus();
}

async function save() {
  const id = $("entity-id").value.trim();
  const headers = { "content-type": "application/json" };
  if ($("key").value) headers["x-api-key"] = $("key").value;
  const options = { method: edited.remove ? "DELETE" : "PUT", headers };
  $("save").disabled = true;
  try {
    if (!edited.remove) options.body = JSON.stringify(await entityBody());
    await call(`v1/entities/${addressOf(id)}`, options);
    known.delete(id);
    changes++;
    $("editor").close();
    info = await json("v1/info");
    showFacts();
    await link();
  } catch (error) {
    tell(error, null, $("entity-problem"));
  } finally {
    $("save").disabled = false;
  }
}

async function entityBody() {
  const body = Object.fromEntries(["name", "type", "description"].map((name) => [name, $(`entity-${name}`).value.trim()]));
  const { aliases = [], popularity = null } = edited.entity ?? {}; // what is saved replaces these too
  Object.assign(body, { aliases, popularity });
  const image = $("entity-picture").files[0] ?? (await presentPicture());
  return image ? { ...body, images: [await base64(image)] } : body;
}

// The picture that the entity has: what is saved replaces all of it.
async function presentPicture() {
  if (!edited.entity?.image_count) return null;
  try {
    return await (await call(entities.picture(edited.entity))).blob();
  } catch {
    throw new Refused("picture", "This service cannot read it back. Choose it again, or it would be lost.");
  }
}

// ---- start ----

function showFacts() {
  $("facts").textContent = `${info.entities.toLocaleString("en")} entities`;
}

function readOffers(schema) {
  const asked = schema.components?.schemas?.LinkBody?.properties ?? {};
  const changes = schema.paths?.["/v1/entities/{entity_id}"] ?? {};
  const edit = "put" in changes && "delete" in changes && info.changes !== false; // false: nobody has the admin key
  offers = { explain: "explain" in asked, nil_threshold: "nil_threshold" in asked, edit };
  $("threshold-field").hidden = !offers.nil_threshold;
  $("names-field").hidden = !info.linker.names?.counted;
  const own = info.linker.nil_threshold?.threshold;
  if (own !== undefined) $("threshold").placeholder = `${own.toFixed(2)}, the model’s own`;
  $("add").hidden = !offers.edit;
}

function listen() {
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); link(); });
  $("sentence").addEventListener("input", follow);
  $("sentence").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); link(); }
  });
  document.addEventListener("selectionchange", takeSelection);
  $("mention").addEventListener("input", findMention);
  for (const id of ["threshold", "names"]) $(id).addEventListener("change", () => soon(0));
  $("file").addEventListener("change", (event) => takePicture([...event.target.files]));
  $("clear").addEventListener("click", () => { forgetExample(); setPicture(null); $("file").focus(); soon(0); });
  document.addEventListener("paste", (event) => {
    if (takePicture(event.clipboardData.files)) event.preventDefault();
  });
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const drag = (on) => (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    document.body.classList.toggle("dragging", on);
  };
  document.addEventListener("dragover", drag(true));
  document.addEventListener("dragleave", drag(false));
  document.addEventListener("drop", (event) => { drag(false)(event); if (carriesFiles(event)) takePicture(event.dataTransfer.files); });
  $("add").addEventListener("click", () => openEditor(null));
  $("cancel").addEventListener("click", () => $("editor").close());
  $("entity").addEventListener("submit", (event) => { event.preventDefault(); save(); });
}

async function start() {
  listen();
  paint();
  try {
    const [facts, schema, { examples }] = await Promise.all(["v1/info", "openapi.json", "v1/examples"].map(json));
    info = facts;
    showFacts();
    readOffers(schema);
    showExamples(examples);
    const first = document.querySelector(".choice");
    if (first && !$("sentence").value) first.click();
    else say("Select the words in a sentence that name something: the ranking appears here.");
  } catch (error) {
    tell(error, () => location.reload());
  }
}

start();
