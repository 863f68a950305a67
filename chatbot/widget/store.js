/**
 * What the chat keeps in this browser, per site, in the storage of the frame's origin. `kind` is
 * `localStorage` (shared by every tab: who the visitor is, which conversation, what was read) or
 * `sessionStorage` (of one tab: what is not acknowledged). Plain memory where the browser blocks
 * it: then a reload begins anew, and nothing else breaks.
 */
export class Store {
  #prefix;
  #memory = new Map();
  #storage = null;

  constructor(site, kind) {
    this.#prefix = `frontdesk:${site}:`;
    try {
      const storage = window[kind];
      const probe = `${this.#prefix}probe`;
      storage.setItem(probe, '1');
      storage.removeItem(probe);
      this.#storage = storage;
    } catch {
      this.#storage = null; // blocked third-party storage throws SecurityError
    }
  }

  /** True when other tabs, and this one after a reload, see what is kept. */
  get shared() {
    return this.#storage !== null;
  }

  get(name) {
    const kept = this.#memory.get(name);
    if (!this.#storage) return kept;
    try {
      return JSON.parse(this.#storage.getItem(this.#prefix + name)) ?? undefined;
    } catch {
      return kept; // somebody else's text under our name
    }
  }

  set(name, value) {
    this.#memory.set(name, value);
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

  /** Call `action(name, value)` when another tab changed something. */
  watch(action) {
    window.addEventListener('storage', ({ key, storageArea }) => {
      if (storageArea !== this.#storage || !key?.startsWith(this.#prefix)) return;
      const name = key.slice(this.#prefix.length);
      action(name, this.get(name));
    });
  }
}
