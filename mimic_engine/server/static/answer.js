// An answer on the page: ranked entities, what each unit gave, the words that counted, and where the time went.

const UNITS = {
  tglu: ["Text", "unit-text"], vdlu: ["Vision", "unit-vision"], concat: ["Vision", "unit-vision"],
  cmfu: ["Cross-modal", "unit-cross"], name: ["Name", "unit-name"], prior: ["Popularity", "unit-prior"],
};
const TERMS = ["name", "prior"]; // added to the mean of the units
const PARTS = {
  prepare: "preparing", queue: "waiting", device: "linking", service: "the rest of the service", way: "on the way",
};

export const $ = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function clearAnswer() {
  for (const id of ["ranking", "timing", "legend"]) $(id).replaceChildren();
  for (const id of ["timing", "legend", "nil"]) $(id).hidden = true;
}

// Show an answer to what was asked, as `body` says it. `entities` knows more of an entity than its name:
// `get(id)` promises it, `picture(entity)` is the address of its picture, `actions(entity)` an element or null.
export function show(result, body, timing, entities) {
  const [best] = result.candidates;
  const units = Object.keys(best?.units ?? {});
  $("legend").replaceChildren(...units.map((unit) => h("li", { class: unitClass(unit) }, unitName(unit))));
  $("legend").hidden = units.length < 2;
  const scale = scaleOf(result.candidates);
  $("ranking").replaceChildren(...result.candidates.map((each, i) => row(each, i === 0, scale, { result, body, entities })));
  $("ranking").classList.toggle("none", Boolean(result.nil));
  $("nil").hidden = !result.nil;
  if (result.nil) {
    const limit = result.nil_threshold ?? body.nil_threshold;
    const below = limit === undefined ? "" : ` The best score, ${best.score.toFixed(2)}, is below ${limit.toFixed(2)}.`;
    $("nil").textContent = `None of these.${below}`;
  }
  const cut = result.text_truncated ? " The text was longer than the model reads, and was cut." : "";
  const found = result.nil ? "none of these" : `${best.name}, score ${best.score.toFixed(1)}`;
  $("status").textContent = `${body.mention}: ${found}.${cut}`;
  showTiming(result, timing);
}

const unitName = (unit) => UNITS[unit]?.[0] ?? unit;
const unitClass = (unit) => UNITS[unit]?.[1] ?? "";
const isTerm = ([unit]) => TERMS.includes(unit);

function shares(candidate) {
  const all = Object.entries(candidate.units);
  const units = all.filter((each) => !isTerm(each)).length;
  return all.map(([unit, s]) => [unit, isTerm([unit]) ? s : s / units]);
}

function scaleOf(candidates) {
  const sum = (each, sign) => shares(each).reduce((total, [, s]) => total + Math.max(0, sign * s), 0);
  const low = Math.max(0, ...candidates.map((each) => sum(each, -1)));
  const high = Math.max(1e-9, ...candidates.map((each) => sum(each, 1)));
  return { zero: low / (low + high), unit: 1 / (low + high) };
}

function bar(candidate, scale) {
  const words = shares(candidate).map(([unit, s]) => `${unitName(unit)} ${s.toFixed(1)}`).join(", ");
  const element = h("div", { class: "bar", role: "img", "aria-label": `Shares of the score: ${words}` });
  let [left, right] = [scale.zero, scale.zero];
  for (const [unit, share] of shares(candidate).filter(([, share]) => share !== 0)) {
    const width = Math.abs(share) * scale.unit;
    const part = h("i", { class: unitClass(unit) });
    part.style.left = `${100 * (share < 0 ? left - width : right)}%`;
    part.style.width = `${100 * width}%`;
    if (share < 0) left -= width;
    else right += width;
    element.append(part);
  }
  return element;
}

function row(candidate, open, scale, { result, body, entities }) {
  const about = h("p", { class: "about" });
  const face = h("span", { class: "face", "aria-hidden": "true" }, candidate.name.slice(0, 1));
  const more = h("div", { class: "more", hidden: !open }, ...numbers(candidate), ...reading(candidate, result, body));
  const name = h("button", { type: "button", class: "name", "aria-expanded": String(open) }, candidate.name);
  const score = h("span", { class: "score", title: `Total score: ${composed(Object.entries(candidate.units))}` }, candidate.score.toFixed(2));
  const item = h("li", { class: open ? "entity open" : "entity" }, face, name, score, about, bar(candidate, scale), more);
  item.dataset.id = candidate.id;
  name.addEventListener("click", () => {
    more.hidden = !item.classList.toggle("open");
    name.setAttribute("aria-expanded", String(!more.hidden));
  });
  entities.get(candidate.id).then((entity) => {
    about.textContent = entity.description;
    if (entity.type) name.append(h("small", {}, entity.type));
    if (entity.image_count) showFace(face, entities.picture(entity));
    more.append(entities.actions(entity) ?? "");
  }, () => { about.textContent = "Its description could not be read."; });
  return item;
}

function showFace(face, address) {
  const image = h("img", { src: address, alt: "" });
  image.addEventListener("load", () => face.replaceChildren(image));
}

function numbers(candidate) {
  const units = Object.entries(candidate.units);
  const each = ([unit, score]) =>
    h("div", { class: unitClass(unit) }, h("dt", {}, unitName(unit)), h("dd", {}, score.toFixed(2)));
  const mean = units.length > 1 ? h("p", { class: "units mean" }, `The score is ${composed(units)}.`) : null;
  const lines = [h("dl", { class: "units" }, ...units.map(each)), mean];
  const { probability, explanation } = candidate;
  const matched = explanation?.matched_name;
  const facts = [
    probability === undefined ? "" : `Probability: ${percent(probability)}.`,
    matched ? `Name that matched: “${matched}”.` : "",
  ].filter(Boolean);
  return facts.length ? [...lines, h("p", { class: "hint" }, facts.join(" "))] : lines;
}

const percent = (share) => `${share > 0.99 ? "over 99" : share < 0.01 ? "under 1" : Math.round(100 * share)}\u00a0%`;

// How a score comes from what is listed.
function composed(units) {
  const terms = units.filter(isTerm).map(([unit]) => unitName(unit).toLowerCase());
  if (!terms.length) return "their mean";
  const mean = units.length - terms.length > 1 ? "the mean of the others" : "the other";
  return `${mean} plus ${terms.join(" and ")}`;
}

// The words of the text that the unit for text attended to, the more the darker.
function reading(candidate, result, body) {
  const attention = candidate.explanation?.attention;
  if (!attention || !result.tokens) return [];
  const words = { mention: [], sentence: [] };
  result.tokens.forEach(({ text, part, start, stop }, i) => {
    const last = words[part]?.at(-1);
    if (last && last.stop === start && /^[\p{L}\p{N}]/u.test(text)) Object.assign(last, { stop, weight: last.weight + attention[i] });
    else words[part]?.push({ start, stop, weight: attention[i] });
  });
  const most = Math.max(1e-9, ...[...words.mention, ...words.sentence].map((word) => word.weight));
  const line = h("p", { class: "read" }, ...shaded(body.mention, words.mention, most));
  line.append(" ", h("span", { class: "apart" }, "in"), " ", ...shaded(body.sentence, words.sentence, most));
  return [line, h("p", { class: "hint" }, "Shaded: the words that its description attended to most.")];
}

function shaded(text, words, most) {
  const letters = Array.from(text); // the service counts characters, not UTF-16 units
  const pieces = [];
  let at = 0;
  for (const { start, stop, weight } of words) {
    const word = h("span", { title: `${(100 * weight).toFixed(1)} % of the attention` }, letters.slice(start, stop).join(""));
    word.style.background = `color-mix(in srgb, var(--text) ${Math.round((45 * weight) / most)}%, transparent)`;
    pieces.push(letters.slice(at, start).join(""), word);
    at = stop;
  }
  return [...pieces, letters.slice(at).join("")];
}

function showTiming(result, { spentMs, header }) {
  const given = Object.fromEntries([...header.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
  const { total = 0, ...parts } = given;
  parts.service = Math.max(0, total - Object.values(parts).reduce((a, b) => a + b, 0));
  parts.way = Math.max(0, spentMs - total);
  const shown = Object.keys(PARTS).filter((name) => name in parts);
  const split = h("div", { class: "split", "aria-hidden": "true" });
  for (const name of shown) {
    const piece = h("i", { class: `part-${name}` });
    piece.style.width = `${(100 * parts[name]) / spentMs}%`;
    split.append(piece);
  }
  const items = shown.map((name) => h("li", { class: `part-${name}` }, `${PARTS[name]} ${parts[name].toFixed(1)} ms`));
  const scored = result.entities_scored.toLocaleString("en");
  const summary = `Answered in ${spentMs.toFixed(1)} ms; ${scored} entities scored (${result.mode}).`;
  $("timing").replaceChildren(h("p", { class: "hint" }, summary), split, h("ul", { class: "parts" }, ...items));
  $("timing").hidden = false;
}
