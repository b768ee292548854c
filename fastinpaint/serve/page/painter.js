// The page: what its buttons and keys do, and what they show.

import { Photo } from "./photo.js";
import { Pointer } from "./pointer.js";
import { View } from "./view.js";

const byId = (id) => document.getElementById(id);
const view = new View(byId("canvas"));
const app = { photo: null, tool: "brush", size: 40, busy: null, begin, finish };
const pointer = new Pointer(app, view);
let overlay = null; // predicted edges or gradients: {kind, picture}
let held = false; // the key that shows the photo before

function refresh(box) {
  const { photo } = app, some = Boolean(photo), hole = some && photo.mask.bounds();
  if (box) overlay = null;
  if (some) Object.assign(view.scene, { picture: photo.now.picture, overlay: overlay?.picture ?? null });
  if (box) view.refreshHole(box);
  const enable = (id, on) => (byId(id).disabled = !on);
  for (const id of ["save", "save-mask", "save-masked", "load-mask"]) enable(id, some && !app.busy);
  for (const id of ["clear", "grow", "fill"]) enable(id, hole && !app.busy);
  enable("undo", some && photo.history.done.length && !app.busy);
  enable("redo", some && photo.history.undone.length && !app.busy);
  enable("compare", some && photo.now !== photo.first);
  enable("show", some && photo.canShowStructure && !app.busy);
  byId("show").value = overlay?.kind ?? "picture";
  byId("empty").hidden = some;
  compare();
}

function compare() {
  const share = byId("compare").disabled ? 0 : Number(byId("compare").value) / 100;
  view.split = app.photo && (held || share > 0) ? (held ? 1 : share) : null;
  view.draw();
}

function say(text) {
  byId("status").textContent = text;
}

function fail(error) {
  byId("error").hidden = !error;
  byId("error").textContent = error?.message ?? "";
}

// Do something that takes a while, with its progress shown and Cancel; one thing at a time.
async function busy(text, work) {
  if (app.busy) return;
  app.busy = new AbortController();
  fail(null);
  byId("busy-text").textContent = text;
  byId("progress").removeAttribute("value");
  byId("busy").hidden = false;
  if (app.photo) refresh(null);
  try {
    await work(app.busy.signal);
  } catch (error) {
    if (error.name === "AbortError") say("Cancelled.");
    else fail(error);
  } finally {
    app.busy = null;
    byId("busy").hidden = true;
    if (app.photo) refresh(null);
  }
}

function progress({ state, ahead, passes, expected }) {
  const waiting = state === "waiting" && ahead > 0;
  byId("busy-text").textContent = waiting ? `Waiting: ${ahead} before this…` : "Filling…";
  if (expected > 1) byId("progress").value = Math.min(passes / expected, 0.95);
}

// Whether a fill would be lost.
const unsaved = () => app.photo && ![app.photo.first, app.photo.saved].includes(app.photo.now);

async function open(file) {
  if (unsaved() && !confirm("The filled photo is not saved. Open another one all the same?")) return;
  await busy("Opening…", async () => {
    const photo = await Photo.open(file, (box) => app.photo === photo && refresh(box));
    app.photo = photo;
    const { mask } = photo;
    view.show({ picture: photo.now.picture, before: photo.first.picture, mask, overlay: null }, true);
    byId("compare").value = 0;
    refresh(photo.whole());
    say(`${file.name || "Photo"}, ${mask.width} × ${mask.height} pixels`);
    byId("canvas").focus();
  });
  if (!app.photo) refresh(null);
}

async function openSample() {
  const response = await fetch("/page/sample.jpg");
  await open(new File([await response.blob()], "sample.jpg", { type: "image/jpeg" }));
}

const loadMask = (file) =>
  busy("Loading…", async () => {
    await app.photo.loadMask(file);
    say("Mask loaded.");
  });

// A stroke begins: the hole must be seen.
function begin() {
  byId("compare").value = 0;
  compare();
}

function finish(name, box) {
  if (!app.photo.commit(name, box)) return;
  say(`Drawn: ${name}.`);
  if (byId("auto").checked && name !== "eraser") fill();
}

async function fill() {
  if (!app.photo || app.busy) return;
  if (!app.photo.mask.bounds()) return say("Paint over what should go first.");
  const start = performance.now();
  await busy("Filling…", async (signal) => {
    await app.photo.fill(signal, progress);
    say(`Filled in ${((performance.now() - start) / 1000).toFixed(1)} s.`);
  });
}

function step(direction) {
  if (!app.photo || app.busy) return;
  pointer.abandon();
  const name = app.photo.history[direction]();
  say(name ? `${direction === "undo" ? "Undone" : "Redone"}: ${name}.` : `Nothing to ${direction}.`);
}

const show = (kind) =>
  busy("Predicting…", async (signal) => {
    overlay = kind === "picture" ? null : { kind, picture: await app.photo.structure(kind, signal) };
    say(overlay ? `Predicted ${kind}.` : "");
  });

function save(what, make) {
  return busy("Saving…", async () => {
    const link = document.createElement("a"), { photo } = app, { now } = photo, name = photo.name(what);
    link.href = URL.createObjectURL(await make());
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    if (what === "filled") photo.saved = now;
    say(`Saved: ${name}.`);
  });
}

function resize(size) {
  app.size = Math.min(Math.max(Math.round(size), 1), 300);
  byId("size").value = byId("size-shown").value = app.size;
  if (view.cursor) pointer.hover([view.cursor.x, view.cursor.y]);
}

function choose(tool) {
  pointer.abandon();
  app.tool = view.canvas.dataset.tool = tool;
  document.querySelector(`[name=tool][value=${tool}]`).checked = true;
}

const edit = (work) => app.photo && !app.busy && work(app.photo);
const clear = () => edit((photo) => photo.clear() && say("Mask cleared."));
const grow = () =>
  edit((photo) => {
    const by = byId("grow-by");
    if (!by.checkValidity()) fail(new Error(`The mask can grow by ${by.min} to ${by.max} pixels.`));
    else if (photo.grow(Number(by.value))) say("Mask grown.");
  });
const openDialog = () => !app.busy && byId("file").click();

const CLICKS = {
  open: openDialog,
  "open-2": openDialog,
  sample: openSample,
  "sample-2": openSample,
  save: () => save("filled", () => app.photo.imageFile()),
  "save-mask": () => save("mask", () => app.photo.maskFile()),
  "save-masked": () => save("masked", () => app.photo.maskedFile()),
  "load-mask": () => byId("mask-file").click(),
  undo: () => step("undo"),
  redo: () => step("redo"),
  clear,
  grow,
  fill,
  cancel: () => app.busy?.abort(),
  help: () => byId("keys").showModal(),
  theme: () => {
    const { dataset } = document.documentElement;
    const shown = dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    dataset.theme = shown === "dark" ? "light" : "dark";
  },
  "zoom-in": () => view.zoom(1.25),
  "zoom-out": () => view.zoom(0.8),
  "zoom-fit": () => view.fit(),
};
for (const [id, action] of Object.entries(CLICKS)) byId(id).addEventListener("click", action);
byId("more").addEventListener("click", (event) => event.target.matches("button") && (byId("more").open = false));
addEventListener("pointerdown", (event) => byId("more").contains(event.target) || (byId("more").open = false), true);
for (const input of document.querySelectorAll("[name=tool]")) input.addEventListener("change", () => choose(input.value));
byId("size").addEventListener("input", (event) => resize(Number(event.target.value)));
byId("compare").addEventListener("input", compare);
byId("show").addEventListener("change", (event) => show(event.target.value));
for (const [id, use] of [["file", open], ["mask-file", loadMask]]) {
  byId(id).addEventListener("change", ({ target }) => {
    if (target.files[0]) use(target.files[0]);
    target.value = "";
  });
}

const KEYS = {
  o: openDialog,
  b: () => choose("brush"),
  e: () => choose("eraser"),
  r: () => choose("rectangle"),
  l: () => choose("lasso"),
  h: () => choose("hand"),
  g: grow,
  "[": () => resize(Math.min(app.size - 1, app.size / 1.15)),
  "]": () => resize(Math.max(app.size + 1, app.size * 1.15)),
  Enter: fill,
  Delete: clear,
  Backspace: clear,
  "+": () => view.zoom(1.25),
  "=": () => view.zoom(1.25),
  "-": () => view.zoom(0.8),
  0: () => view.fit(),
  1: () => view.zoom(1 / view.scale),
  "?": () => byId("keys").showModal(),
  c: () => hold(true),
};

function hold(on) {
  held = on && app.photo && app.photo.now !== app.photo.first;
  compare();
}

addEventListener("keydown", (event) => {
  if (byId("keys").open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Escape") {
    if (app.busy) return app.busy.abort();
    byId("more").open = false;
    fail(null);
    return pointer.abandon();
  }
  let action = KEYS[key];
  if (event.ctrlKey || event.metaKey) {
    const redo = key === "y" || (key === "z" && event.shiftKey);
    action = redo ? CLICKS.redo : { z: CLICKS.undo, s: () => app.photo && CLICKS.save(), o: openDialog }[key];
  } else if (event.altKey || event.target.matches("input:not([type=radio]):not([type=checkbox]), select")) return;
  else if (key === "Enter" && event.target.matches("button, summary")) return;
  if (!action) return;
  event.preventDefault();
  if (!event.repeat || "[]+-=".includes(key) || event.ctrlKey) action();
});
addEventListener("keyup", (event) => event.key.toLowerCase() === "c" && hold(false));
addEventListener("blur", () => hold(false));

const stage = document.querySelector(".stage");
const receive = (items) => {
  const files = [...(items?.files ?? [])], file = files.find((each) => each.type.startsWith("image/") || !each.type);
  if (file) open(file);
  else if (files.length) fail(new Error(`${files[0].name} is no picture.`));
  return Boolean(file);
};
addEventListener("beforeunload", (event) => unsaved() && event.preventDefault());
addEventListener("paste", (event) => receive(event.clipboardData) && event.preventDefault());
addEventListener("dragover", (event) => {
  event.preventDefault();
  stage.classList.add("drop");
});
addEventListener("dragleave", (event) => event.relatedTarget || stage.classList.remove("drop"));
addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("drop");
  receive(event.dataTransfer);
});

choose("brush");
refresh(null);
