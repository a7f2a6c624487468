"use strict";

// One task at a time: state is what the server last said, and what has been chosen since.
const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const letter = (i) => String.fromCharCode(65 + i);

let annotator = "";
let state; // { criteria, turn, shown, progress }
let busy = false;
let current = 0; // the criterion that keys answer
let ranks; // of each criterion, in the order shown
let strength; // of each criterion
let placed; // of each criterion of a ranking: groups of places, best first; those of a group are tied
let tying = false;
let seen = 0; // ms that the task has been in view
let since; // when it last came into view

const isPair = () => state.shown.completions.length === 2;
const groupOf = (groups, i) => groups.findIndex((group) => group.includes(i));
const rankAt = (groups, at) => 1 + groups.slice(0, at).flat().length;

/** Sends what the annotator did and shows what comes next, or what went wrong. */
function ask(route, body = {}) {
  void send(route, body);
}

async function send(route, body) {
  if (busy) return;
  busy = true;
  document.body.ariaBusy = "true";
  try {
    const response = await fetch(route, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ annotator, ...body }),
    }).catch(() => {
      throw new Error(
        "The server does not answer, so this is not saved. Start rlhf label again and open the address that it prints; everything up to here is kept.",
      );
    });
    const answer = await response.json();
    if (response.status === 409) {
      busy = false;
      await send("next", {});
      return complain(
        "This was answered before, here or in another window, and that answer stays. Undo takes back the last one.",
      );
    }
    if (!response.ok) throw new Error(answer.error);
    state = answer;
    $("error").hidden = true;
    show();
    $("status").textContent = { answer: "Saved. ", undo: "Taken back. " }[route] ?? "";
  } catch (error) {
    complain(error.message);
  } finally {
    busy = false;
    document.body.ariaBusy = "false";
  }
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = false;
}

function show() {
  const { shown, progress, criteria } = state;
  $("start").hidden = true;
  $("who").hidden = false;
  $("who").textContent = annotator;
  $("who").ariaLabel = `Annotator ${annotator}: change`;
  document.querySelector(".progress").hidden = false;
  const bar = document.querySelector("progress");
  bar.max = progress.wanted;
  bar.value = progress.labels;
  $("counts").replaceChildren(
    `${progress.labels} of ${progress.wanted}`,
    make("span", { className: "wide", textContent: ` labels, ${progress.mine} yours` }),
  );
  const alphas = Object.entries(progress.alpha).filter(([, alpha]) => alpha !== null);
  $("agreement").textContent = alphas
    .map(([name, alpha]) => `${criteria.length > 1 ? `${name} ` : ""}\u03b1 ${alpha.toFixed(2)}`)
    .join("  ");
  $("task").hidden = $("bar").hidden = shown === null;
  $("done").hidden = shown !== null;
  reason(false);
  $("reason").value = "";
  if (!shown) return finished();
  current = 0;
  tying = false;
  ranks = {};
  strength = {};
  placed = Object.fromEntries(criteria.map((name) => [name, []]));
  $("prompt-title").hidden = $("prompt").hidden = shown.prompt.length === 0;
  fill($("prompt"), shown.prompt);
  $("cards").className = isPair() ? "pair" : "";
  $("cards").dataset.count = shown.completions.length;
  $("cards").replaceChildren(...shown.completions.map(card));
  questions();
  seen = 0;
  since = document.hidden ? undefined : performance.now();
  scrollTo(0, 0);
  $("prompt").scrollTop = $("prompt").scrollHeight; // the last turn is what the completions answer
  (shown.prompt.length === 0 ? $("cards") : $("prompt-title")).focus?.({ preventScroll: true });
}

function finished() {
  const { progress } = state;
  const waiting = progress.wanted - progress.labels;
  $("summary").textContent =
    `You have answered ${progress.mine}. ` +
    (waiting > 0
      ? `${waiting} more ${waiting > 1 ? "labels are" : "label is"} wanted from someone else.`
      : "All labels that were wanted are there.");
  $("done").querySelector("h2").focus();
}

function fill(place, text) {
  if (typeof text === "string") return place.replaceChildren(text.replace(/^\s+/, ""));
  place.replaceChildren(
    ...text.map(({ role, content }) => make("div", { className: "turn" }, make("b", { textContent: role }), content)),
  );
}

function card(text, i) {
  const title = make("h3", { id: `title-${i}` }, letter(i));
  const content = make("div", { className: "text" });
  fill(content, text);
  if (!isPair()) {
    const button = make("button", { onclick: () => place(i) }, "Next best ", make("kbd", { textContent: letter(i) }));
    button.ariaLabel = `${letter(i)} is the next best`;
    title.append(button);
  }
  const element = make("article", { className: "card" }, title, content);
  element.setAttribute("aria-labelledby", title.id);
  return element;
}

const scale = [
  { side: 1, how: "clearly", text: "A", more: "clearly", key: "\u21e7A" },
  { side: 1, how: "slightly", text: "A", more: "slightly", key: "A" },
  { side: 0, text: "Tie", more: "", key: "T" },
  { side: 2, how: "slightly", text: "B", more: "slightly", key: "B" },
  { side: 2, how: "clearly", text: "B", more: "clearly", key: "\u21e7B" },
];

const named = (criterion) => (criterion === "overall" ? "better" : `more ${criterion.replaceAll("_", " ")}`);

function questions() {
  const { criteria } = state;
  $("questions").className = criteria.length > 1 ? "several" : "";
  $("questions").replaceChildren(
    ...criteria.map((criterion, k) => {
      const box = make(
        "fieldset",
        { className: "question" },
        make("legend", {
          textContent: isPair() ? `Which is ${named(criterion)}?` : `Rank: which is ${named(criterion)}?`,
        }),
      );
      box.append(isPair() ? fivefold(criterion, k) : order());
      return box;
    }),
  );
  mark();
}

function fivefold(criterion, k) {
  return make(
    "div",
    { className: "scale" },
    ...scale.map(({ side, how, text, more, key }) => {
      const button = make(
        "button",
        { onclick: () => ((current = k), choose(side, how)) },
        make("b", { textContent: text }),
        make("span", { textContent: more }),
        make("kbd", { textContent: key }),
      );
      button.dataset.side = side;
      button.dataset.how = how ?? "";
      button.ariaLabel = side === 0 ? `Tie: neither is ${named(criterion)}` : `${text} is ${more} ${named(criterion)}`;
      return button;
    }),
  );
}

function order() {
  return make(
    "div",
    { className: "ranking" },
    make("output"),
    make("button", { onclick: tie }, "Tie with last ", make("kbd", { textContent: "=" })),
    make("button", { onclick: back }, "Back ", make("kbd", { textContent: "\u232b" })),
    make("button", { className: "primary", onclick: ranked }, "Done ", make("kbd", { textContent: "\u23ce" })),
  );
}

/** Shows what has been chosen. */
function mark() {
  const { criteria } = state;
  [...$("questions").children].forEach((box, k) => {
    const criterion = criteria[k];
    box.classList.toggle("now", k === current);
    if (isPair()) {
      const chosen = ranks[criterion] && {
        side: 1 + ranks[criterion].indexOf(1),
        tie: ranks[criterion][0] === ranks[criterion][1],
      };
      for (const button of box.querySelectorAll(".scale button")) {
        const { side, how } = button.dataset;
        button.ariaPressed = String(
          !!chosen && (chosen.tie ? side === "0" : Number(side) === chosen.side && how === strength[criterion]),
        );
      }
    } else {
      box.hidden = k !== current;
      const [tie, backwards, done] = box.querySelectorAll("button");
      tie.ariaPressed = String(tying);
      tie.disabled = backwards.disabled = placed[criterion].length === 0;
      done.disabled = placed[criterion].flat().length < state.shown.completions.length;
      box.querySelector("output").textContent =
        placed[criterion].map((group) => group.map(letter).join(" = ")).join("  >  ") || "Best first";
    }
  });
  if (isPair()) return;
  const groups = placed[criteria[current]];
  [...$("cards").children].forEach((element, i) => {
    const at = groupOf(groups, i);
    element.classList.toggle("placed", at >= 0);
    element.querySelector(".rank")?.remove();
    element.querySelector("h3 button").hidden = at >= 0;
    if (at >= 0)
      element
        .querySelector("h3")
        .append(make("span", { className: "rank", textContent: `rank ${rankAt(groups, at)}` }));
  });
}

/** @param side 1 or 2 for the first or second completion, 0 for a tie */
function choose(side, how) {
  const criterion = state.criteria[current];
  ranks[criterion] = [
    [1, 1],
    [1, 2],
    [2, 1],
  ][side];
  if (how) strength[criterion] = how;
  else delete strength[criterion];
  next();
}

function place(i) {
  const groups = placed[state.criteria[current]];
  if (groups.flat().includes(i)) return;
  if (tying && groups.length > 0) groups.at(-1).push(i);
  else groups.push([i]);
  tying = false;
  mark();
}

function tie() {
  tying = !tying && placed[state.criteria[current]].length > 0;
  mark();
}

function back() {
  const groups = placed[state.criteria[current]];
  groups.at(-1)?.pop();
  if (groups.at(-1)?.length === 0) groups.pop();
  tying = false;
  mark();
}

function ranked() {
  const criterion = state.criteria[current];
  const groups = placed[criterion];
  const { completions } = state.shown;
  if (groups.flat().length < completions.length) return;
  ranks[criterion] = completions.map((_, i) => rankAt(groups, groupOf(groups, i)));
  next();
}

/** On to the next criterion without an answer, or to the next task. */
function next() {
  const open = state.criteria.findIndex((criterion) => !ranks[criterion]);
  if (open < 0) return answer("label");
  current = open;
  tying = false;
  mark();
}

function answer(kind) {
  const seconds = Math.min(1e6, (seen + (since === undefined ? 0 : performance.now() - since)) / 1000);
  const text = $("reason")
    .value.replace(/[^\P{Cc}\n\t]|\p{Cs}/gu, " ")
    .trim();
  return ask("answer", {
    turn: state.turn,
    task: state.shown.task,
    kind,
    seconds,
    ...(kind === "label" ? { ranks, strength } : {}),
    ...(text ? { reason: text } : {}),
  });
}

function reason(open) {
  $("reason-box").hidden = !open;
  document.querySelector('[data-do="reason"]').ariaExpanded = String(open);
  if (open) $("reason").focus();
  else if (document.activeElement === $("reason")) $("reason").blur();
}

const actions = {
  skip: () => answer("skip"),
  flag: () => answer("flag"),
  undo: () => ask("undo", { turn: state.turn }),
  reason: () => reason($("reason-box").hidden),
};

function keys() {
  const pair = state?.shown ? isPair() : true;
  const list = [
    ...(pair
      ? [
          ["A  B", "is slightly better"],
          ["\u21e7A  \u21e7B", "is clearly better"],
          ["T", "a tie"],
          ...((state?.criteria.length ?? 1) > 1 ? [["\u2191  \u2193", "another question"]] : []),
        ]
      : [
          ["A  B  \u2026", "the next best"],
          ["=", "the one that follows is as good"],
          ["\u232b", "take the last letter back"],
          ["\u23ce", "done"],
        ]),
    ["S", "skip"],
    ["X", "flag: broken or harmful"],
    ["R", "a reason"],
    ["U", "undo the last answer"],
    ["?", "these keys"],
  ];
  const rows = list.flatMap(([names, text]) => [
    make("dt", {}, ...names.split("  ").map((name) => make("kbd", { textContent: name }))),
    make("dd", { textContent: text }),
  ]);
  $("keys")
    .querySelector("dl")
    .replaceChildren(...rows);
  $("keys").showModal();
}

addEventListener("keydown", (event) => {
  if (event.target === $("reason") && event.key === "Escape") return reason(false);
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || busy || $("keys").open) return;
  if (event.target.matches("input, textarea") || !state) return;
  if (event.key === "?") return keys();
  const key = event.key.toLowerCase();
  if (key === "u") return actions.undo();
  if (!state.shown || (event.target.matches("button") && (key === "enter" || key === " "))) return;
  const does = { s: actions.skip, x: actions.flag, r: actions.reason };
  const completion = key.length === 1 ? key.charCodeAt(0) - 97 : -1;
  if (does[key]) does[key]();
  else if (isPair()) {
    if (completion === 0 || completion === 1) choose(1 + completion, event.shiftKey ? "clearly" : "slightly");
    else if (key === "t" || key === "=") choose(0);
    else if (key === "arrowdown" || key === "arrowup") {
      if (state.criteria.length === 1) return;
      current = (current + (key === "arrowdown" ? 1 : state.criteria.length - 1)) % state.criteria.length;
      mark();
    } else return;
  } else if (completion >= 0 && completion < state.shown.completions.length) place(completion);
  else if (key === "=" || key === "t") tie();
  else if (key === "backspace") back();
  else if (key === "enter") ranked();
  else return;
  event.preventDefault();
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden && since !== undefined) {
    seen += performance.now() - since;
    since = undefined;
  } else if (!document.hidden) since = performance.now();
});

const storage = {
  get: () => {
    try {
      return localStorage.getItem("annotator") ?? "";
    } catch {
      return "";
    }
  },
  set: (name) => {
    try {
      localStorage.setItem("annotator", name);
    } catch {
      // a browser that keeps nothing asks again
    }
  },
};

function start() {
  state = undefined;
  for (const id of ["task", "done", "bar", "who"]) $(id).hidden = true;
  document.querySelector(".progress").hidden = true;
  $("start").hidden = false;
  $("name").value = storage.get();
  $("name").focus();
}

$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = $("name").value.trim();
  if (annotator === "") return;
  storage.set(annotator);
  ask("next");
});
for (const button of document.querySelectorAll("[data-do]"))
  button.addEventListener("click", () => actions[button.dataset.do]());
$("who").addEventListener("click", start);
$("help").addEventListener("click", keys);
$("undo-done").addEventListener("click", actions.undo);
start();
