"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const slider = byId("step");
const plan = byId("plan");
const last = data.steps.length - 1;
const cursors = [...document.querySelectorAll("#time svg")].map((svg) => {
  const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const box = svg.viewBox.baseVal;
  for (const [key, value] of Object.entries({ y: 50, width: data.axis.step, height: box.height - 50 })) {
    bar.setAttribute(key, value);
  }
  bar.setAttribute("class", "cursor");
  svg.append(bar);
  return bar;
});
// Of a plan with repeated blocks there are two drawings: blocks drawn once, and all of them.
const drawings = [...plan.children].map((holder) => ({
  holder,
  nodes: new Map([...holder.querySelectorAll("g.node[data-node]")].map((each) => [each.dataset.node, each])),
  tags: new Map([...holder.querySelectorAll("g.node[data-value]")].map((each) => [each.dataset.value, each])),
}));
let drawing = drawings[0];
// A wide plan is made smaller to fit, as long as its letters can be read.
for (const { holder } of drawings) {
  const svg = holder.querySelector("svg");
  svg.style.minWidth = `${Math.round(svg.viewBox.baseVal.width * 4 / 3 * 0.7)}px`;
}

// What lies on the tape after each step: stored in the forward, or rebuilt in the backward.
const tapes = [];
const tape = new Map();
for (const step of data.steps) {
  for (const name of step.stores) tape.set(name, "stored");
  if (step.stage) for (const name of step.makes) if (!tape.has(name)) tape.set(name, "rebuilt");
  if (step.stage || step.action === "free") for (const name of step.frees) tape.delete(name);
  tapes.push(new Map(tape));
}

// The first step of each node's turn: its forward, or its stage with all that is derived for it.
const owner = (step) => step.stage || step.node;
const turns = data.steps.map((_, place) => place)
  .filter((place) => !place || owner(data.steps[place]) !== owner(data.steps[place - 1]));

const here = () => Number(slider.value);

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (count >= 1024 && place < units.length - 1) { count /= 1024; place += 1; }
  return `${place ? count.toFixed(1) : count} ${units[place]}`;
}

function drawn(name) {
  return drawing.nodes.get(name) ?? drawing.nodes.get(data.shown[name]);
}

function mark(group, name) {
  for (const before of plan.querySelectorAll(`g.${name}`)) before.classList.remove(name);
  if (group) group.classList.add(name);
}

// The part of a pane that can be seen: between the bar above, and the step where that is a sheet below.
function seen(pane) {
  const frame = pane.getBoundingClientRect();
  const sheet = byId("this");
  const below = getComputedStyle(sheet).position === "sticky"
    ? sheet.getBoundingClientRect().top : window.innerHeight;
  const top = Math.max(frame.top, document.querySelector("nav").getBoundingClientRect().bottom);
  return { top, bottom: Math.max(top, Math.min(frame.bottom, below)), left: frame.left, right: frame.right };
}

function reveal(element, pane) {
  if (!element) return;
  const inside = element.getBoundingClientRect();
  const frame = pane.getBoundingClientRect();
  let { top, bottom } = seen(pane);
  if (bottom - top < inside.height) ({ top, bottom } = frame);
  if (inside.top < top || inside.bottom > bottom) {
    pane.scrollTop += inside.top - top - (bottom - top - inside.height) / 2;
  }
  if (inside.left < frame.left || inside.right > frame.right) {
    pane.scrollLeft += inside.left - frame.left - (frame.width - inside.width) / 2;
  }
}

function show(index, link = true) {
  const place = Math.max(0, Math.min(last, index));
  const step = data.steps[place];
  slider.value = place;
  slider.setAttribute("aria-valuetext", `step ${place + 1}: ${step.what}`);
  byId("count").textContent = `${place + 1} / ${data.steps.length}`;
  byId("count").href = `#step=${place + 1}`;
  byId("what").textContent = step.what;
  byId("why").textContent = step.why;
  byId("live").textContent = `${bytes(step.live)} live after it, ${bytes(step.peak)} at most while it runs`;
  byId("parts").textContent = Object.entries(step.parts).filter((part) => part[1] > 0)
    .map((part) => `${part[0]} ${bytes(part[1])}`).join(", ");
  for (const item of document.querySelectorAll("#algorithm li")) {
    item.classList.toggle("runs", step.lines.includes(Number(item.value)));
  }
  const held = byId("tape");
  held.replaceChildren(...[...tapes[place]].map(([name, kind]) => {
    const chip = document.createElement("span");
    chip.textContent = name;
    chip.className = kind;
    chip.title = kind;
    return chip;
  }));
  if (!tapes[place].size) held.textContent = "nothing";
  for (const [name, group] of drawing.tags) group.classList.toggle("gone", !tapes[place].has(name));
  byId("absent").hidden = !drawing.tags.size;
  for (const bar of cursors) bar.setAttribute("x", data.axis.left + place * data.axis.step);
  const group = drawn(step.node);
  mark(group, "here");
  reveal(group, plan);
  reveal(cursors[0], byId("time"));
  if (link) remember(place);
}

// The address follows the step, so that it can be passed on. Some places where pages are shown forbid it.
function remember(place) {
  try {
    history.replaceState(null, "", `#step=${place + 1}`);
  } catch { /* the step's own link is there nevertheless */ }
}

function linked() {
  const found = /^#step=(\d+)$/.exec(location.hash);
  return found ? Number(found[1]) - 1 : null;
}

const words = { run: "forward", loss: "loss", invert: "inverted", wire: "redone", invert_wiring: "undone",
  backward: "backward", invert_again: "inverted again" };

function choose(name) {
  const text = data.explain[name];
  byId("found").hidden = false;
  byId("about").textContent = text ?? `There is no node ${name}.`;
  const links = data.steps.flatMap((step, place) => (text && step.node === name ? [[step, place]] : []))
    .map(([step, place]) => {
      const link = document.createElement("a");
      link.href = `#step=${place + 1}`;
      link.textContent = `${words[step.action] ?? "run again"} ${place + 1}`;
      link.addEventListener("click", () => show(place));
      return link;
    });
  byId("goto").replaceChildren(...(links.length ? ["go to its steps: "] : []),
    ...links.flatMap((link, place) => (place ? [", ", link] : [link])));
  mark(text ? drawn(name) : null, "chosen");
  if (text) reveal(drawn(name), plan);
}

function putAway() {
  byId("found").hidden = true;
  mark(null, "chosen");
}

function unfold(whole) {
  drawing.holder.hidden = true;
  drawing = drawings[whole ? drawings.length - 1 : 0];
  drawing.holder.hidden = false;
  byId("unfold").setAttribute("aria-pressed", String(whole));
  show(here());
}

// Steps at which a node's turn begins: the last one before a step, the first one after it.
const before = (place) => turns.findLast((turn) => turn < place) ?? 0;
const after = (place) => turns.find((turn) => turn > place) ?? last;

// While a report asks for its peak, nothing points it out.
const asking = () => document.body.classList.contains("asking");

function tell(text) {
  byId("verdict").textContent = text;
}

function answer() {
  const [step, peak] = [data.steps[here()], data.steps[data.peak]];
  if (step.peak < peak.peak) {
    tell(`Not step ${here() + 1}: ${bytes(step.peak)} are live there at most, and elsewhere more.`);
  } else {
    document.body.classList.remove("asking");
    tell(`Yes: step ${here() + 1}, ${step.what}. ${bytes(step.peak)} are live while it runs.`);
  }
}

function goToPeak() {
  if (asking()) {
    const peak = data.steps[data.peak];
    document.body.classList.remove("asking");
    tell(`It is step ${data.peak + 1}, ${peak.what}. ${bytes(peak.peak)} are live while it runs.`);
  }
  show(data.peak);
}

function toggleKeys() {
  const list = byId("keylist");
  if (list.open) list.close();
  else list.showModal();
}

if (drawings.length > 1) {
  byId("unfold").hidden = false;
  byId("unfold").addEventListener("click", () => unfold(drawing === drawings[0]));
}
slider.addEventListener("input", () => show(here()));
for (const [id, move] of [["first", () => 0], ["back", () => here() - 1], ["next", () => here() + 1],
  ["last", () => last]]) {
  byId(id).addEventListener("click", () => show(move()));
}
byId("peak").addEventListener("click", goToPeak);
byId("help").addEventListener("click", toggleKeys);
byId("close").addEventListener("click", putAway);
if (byId("question")) {
  byId("answer").addEventListener("click", answer);
  byId("reveal").addEventListener("click", goToPeak);
}
byId("search").addEventListener("change", (event) => {
  if (event.target.value) choose(event.target.value);
});
plan.addEventListener("click", (event) => {
  const group = event.target.closest("g.node[data-node]");
  if (group) choose(group.dataset.node);
});
byId("time").addEventListener("click", (event) => {
  const sign = event.target.closest("[data-step]");
  const svg = event.target.closest("svg");
  if (sign && sign.dataset.step !== "") {
    show(Number(sign.dataset.step));
    choose(sign.dataset.node);
  } else if (svg) {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    show(Math.floor((x - data.axis.left) / data.axis.step));
  }
});
const keys = {
  ArrowRight: () => show(here() + 1),
  ArrowLeft: () => show(here() - 1),
  ArrowDown: () => show(after(here())),
  ArrowUp: () => show(before(here())),
  PageDown: () => show(here() + 10),
  PageUp: () => show(here() - 10),
  Home: () => show(0),
  End: () => show(last),
  p: goToPeak,
  P: goToPeak,
  "/": () => byId("search").select(),
  "?": toggleKeys,
  Escape: putAway,
};
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.matches("input[type=search]")) {
    if (event.key === "Escape") event.target.blur();
    if (event.key === "Enter" && event.target.value) choose(event.target.value);
    return;
  }
  if (byId("keylist").open && event.key !== "?") return;
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
window.addEventListener("hashchange", () => {
  if (linked() !== null) show(linked());
});
show(linked() ?? 0, false);
