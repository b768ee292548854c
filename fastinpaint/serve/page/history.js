// Undo and redo: each step knows how to be taken back and how to be done again.

const MOST_BYTES = 256 * 2 ** 20;

export class History {
  constructor(onChange) {
    this.onChange = onChange;
    this.done = [];
    this.undone = [];
  }

  // step: {name, bytes, undo(), redo()}, already done.
  add(step) {
    this.done.push(step);
    this.undone = [];
    let bytes = 0;
    const kept = this.done.findLastIndex((old) => (bytes += old.bytes) > MOST_BYTES);
    this.done.splice(0, Math.min(kept + 1, this.done.length - 1)); // the newest is always kept
    this.onChange();
  }

  undo() {
    const step = this.done.pop();
    if (!step) return null;
    step.undo();
    this.undone.push(step);
    this.onChange();
    return step.name;
  }

  redo() {
    const step = this.undone.pop();
    if (!step) return null;
    step.redo();
    this.done.push(step);
    this.onChange();
    return step.name;
  }
}
