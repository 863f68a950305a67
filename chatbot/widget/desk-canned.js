/** Canned replies: a list that opens after a slash, and a dialog to keep them. */
import { $, make } from './desk-dom.js';

// a name alone: what visitors and programs write between braces is no blank
const BLANK = /\{\{\s*([\p{L}\d_ -]{0,40}?)\s*\}\}/gu;

/** `text` with the variables that have a value filled in; the others stay, to be filled by hand. */
export function fillIn(text, values) {
  return text.replace(BLANK, (whole, name) => values[name.toLowerCase()] ?? whole);
}

/** Where the next blank from `from` on stands, or else the first: [start, end], or null. */
export function nextBlank(text, from = 0) {
  const blanks = [...text.matchAll(BLANK)];
  const found = blanks.find(({ index }) => index >= from) ?? blanks[0];
  return found ? [found.index, found.index + found[0].length] : null;
}

/** Names that fit what was typed after the slash, those that begin with it first. */
export function matching(items, query) {
  const wanted = query.toLowerCase();
  const fits = items.filter(({ name, text }) => name.includes(wanted) || text.toLowerCase().includes(wanted));
  return fits.sort((a, b) => b.name.startsWith(wanted) - a.name.startsWith(wanted) || a.name.localeCompare(b.name));
}

export class Canned {
  items = [];
  #chosen = 0;
  #shown = [];

  /** `values()`: the variables of the open conversation; `onError(message)`. */
  constructor(session, { values, onError, onInsert }) {
    Object.assign(this, { session, values, onError, onInsert });
    this.field = $('text');
    $('canned-form').addEventListener('submit', (event) => this.#save(event));
  }

  async load() {
    try {
      this.items = (await this.session.api('GET', 'canned-replies')).items;
    } catch (error) {
      this.onError(error.message);
    }
  }

  get open() {
    return !$('canned').hidden;
  }

  /** Call after every change of the field. */
  update() {
    const query = /^\/(\S*)$/u.exec(this.field.value);
    this.#shown = query && !this.field.disabled ? matching(this.items, query[1]).slice(0, 6) : [];
    this.#chosen = Math.min(this.#chosen, Math.max(0, this.#shown.length - 1));
    if (query && !this.open) this.load().then(() => this.open && this.update()); // somebody may have changed them
    $('canned').hidden = !query;
    if (query) this.#show();
    else this.field.removeAttribute('aria-activedescendant');
  }

  #show() {
    const none = this.items.length ? 'None fits.' : 'There are no canned replies yet.';
    $('canned-none').hidden = this.#shown.length > 0;
    $('canned-none').textContent = none;
    $('canned-list').replaceChildren(...this.#shown.map((item, at) => this.#option(item, at)));
    if (this.#shown.length) this.field.setAttribute('aria-activedescendant', `canned-${this.#chosen}`);
  }

  #option({ name, text }, at) {
    const node = make('li', 'option', make('strong', '', `/${name}`), make('span', '', text));
    node.id = `canned-${at}`;
    node.setAttribute('role', 'option');
    node.setAttribute('aria-selected', String(at === this.#chosen));
    node.addEventListener('mousedown', (event) => {
      event.preventDefault(); // the field keeps its focus
      this.#insert(at);
    });
    return node;
  }

  /** True when the key was for the list, or went to the next blank. */
  key(event) {
    if (event.key === 'Tab' && !event.shiftKey) return this.#toBlank(event);
    if (!this.open) return false;
    if (event.key === 'Escape') {
      this.field.value = '';
      this.update();
    } else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      const step = event.key === 'ArrowDown' ? 1 : -1;
      this.#chosen = (this.#chosen + step + this.#shown.length) % Math.max(1, this.#shown.length);
      this.#show();
    } else if (event.key === 'Enter' && this.#shown.length) this.#insert(this.#chosen);
    else return false;
    event.preventDefault();
    return true;
  }

  #insert(at) {
    this.field.value = fillIn(this.#shown[at].text, this.values());
    this.#chosen = 0;
    this.update();
    const blank = nextBlank(this.field.value);
    if (blank) this.field.setSelectionRange(...blank);
    this.onInsert();
  }

  #toBlank(event) {
    const blank = nextBlank(this.field.value, this.field.selectionEnd);
    if (!blank) return false;
    event.preventDefault();
    this.field.setSelectionRange(...blank);
    return true;
  }

  // -- keeping them

  async manage() {
    await this.load();
    const may = ['reviewer', 'admin'].includes(this.session.user?.role);
    $('canned-form').hidden = !may;
    $('canned-may').hidden = may;
    this.#edit();
    this.#showAll();
    $('canned-dialog').showModal();
  }

  #showAll() {
    $('canned-all-none').hidden = this.items.length > 0;
    $('canned-all').replaceChildren(...this.items.map((item) => {
      const edit = make('button', 'option', make('strong', '', `/${item.name}`), make('span', '', item.text));
      edit.type = 'button';
      edit.addEventListener('click', () => {
        this.#edit(item);
        $('canned-text').focus();
      });
      const remove = make('button', 'button ghost', 'Delete');
      remove.type = 'button';
      remove.hidden = $('canned-form').hidden;
      remove.setAttribute('aria-label', `Delete ${item.name}`);
      remove.addEventListener('click', () => this.#change('DELETE', item.name));
      return make('li', '', edit, remove);
    }));
  }

  #edit({ name, text } = { name: '', text: '' }) {
    $('canned-name').value = name;
    $('canned-text').value = text;
    $('canned-error').hidden = true;
  }

  #save(event) {
    event.preventDefault();
    this.#change('PUT', $('canned-name').value.trim(), { text: $('canned-text').value });
  }

  async #change(method, name, body) {
    try {
      await this.session.api(method, `canned-replies/${encodeURIComponent(name)}`, body);
      await this.load();
      this.#edit();
      this.#showAll();
    } catch (error) {
      $('canned-error').hidden = false;
      $('canned-error').textContent = error.message;
    }
  }
}
