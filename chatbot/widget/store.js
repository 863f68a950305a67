/**
 * What the chat keeps in this browser, per site, in the storage of the frame's origin. `kind` is
 * `localStorage` (shared by every tab: who the visitor is, which conversation, what was read) or
 * `sessionStorage` (of one tab: what is not acknowledged).
 *
 * With `kept` false nothing is written before `keep()`: until the visitor agreed, or the site is
 * known to ask for no consent, all is in memory. The same where the browser blocks storage: then a reload begins anew, and
 * nothing else breaks.
 */
export class Store {
  #prefix;
  #memory = new Map();
  #storage = null;
  #kept;

  constructor(site, kind, kept = true) {
    this.#kept = kept;
    this.#prefix = `frontdesk:${site}:`;
    try {
      const storage = window[kind];
      storage.getItem(this.#prefix);
      this.#storage = storage;
    } catch {
      this.#storage = null; // blocked third-party storage throws SecurityError
    }
  }

  /** True when other tabs, and this one after a reload, may see what is kept. */
  get shared() {
    return this.#storage !== null;
  }

  get(name) {
    const here = this.#memory.get(name);
    if (!this.#storage || (!this.#kept && here !== undefined)) return here;
    try {
      return JSON.parse(this.#storage.getItem(this.#prefix + name)) ?? undefined;
    } catch {
      return here; // somebody else's text under our name
    }
  }

  set(name, value) {
    this.#memory.set(name, value);
    if (!this.#kept) return;
    try {
      this.#storage?.setItem(this.#prefix + name, JSON.stringify(value));
    } catch {
      // full: memory has it, for the life of this page
    }
  }

  remove(...names) {
    for (const name of names) {
      this.#memory.delete(name);
      this.#storage?.removeItem(this.#prefix + name);
    }
  }

  /** From now on things are written; so is what memory holds. */
  keep() {
    if (this.#kept) return;
    this.#kept = true;
    for (const [name, value] of this.#memory) this.set(name, value);
  }

  /** Remove everything, and write nothing until `keep()`. */
  forget() {
    this.#kept = false;
    this.#memory.clear();
    const names = Object.keys(this.#storage ?? {}).filter((name) => name.startsWith(this.#prefix));
    for (const name of names) this.#storage.removeItem(name);
  }

  /** Call `action(name, value)` when another tab changed something. */
  watch(action) {
    window.addEventListener('storage', ({ key, storageArea }) => {
      if (storageArea !== this.#storage || !key?.startsWith(this.#prefix)) return;
      const name = key.slice(this.#prefix.length);
      action(name, this.get(name));
    });
  }
}
