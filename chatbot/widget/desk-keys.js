/** The keys of the desk: one table, from which the help is made. docs/desk.md is tested against it. */
import { $, make } from './desk-dom.js';

const NAMES = { ArrowDown: '↓', ArrowUp: '↑' };

/** Keys that the text field and the dialogs take by themselves. */
export const FIELD_KEYS = [
  { keys: ['Enter'], does: 'send' },
  { keys: ['Ctrl+Enter'], does: 'new line' },
  { keys: ['Tab'], does: 'next blank of a canned reply' },
  { keys: ['Esc'], does: 'leave the text field, close a dialog' },
];

export class Keys {
  /** `table`: [{keys, does, action}]. `active()`: whether the keys mean anything now. `others`: keys that fields take. */
  constructor(table, active, others = FIELD_KEYS) {
    this.table = table;
    this.active = active;
    this.actions = new Map(table.flatMap(({ keys, action }) => keys.map((key) => [key, action])));
    document.addEventListener('keydown', (event) => this.#take(event));
    $('keys').replaceChildren(...[...table, ...others].flatMap(({ keys, does }) => [
      make('dt', '', ...keys.map((key) => make('kbd', '', NAMES[key] ?? key))),
      make('dd', '', does),
    ]));
  }

  #take(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || !this.active()) return;
    if (event.target.closest?.('input, textarea, select, dialog[open]')) {
      if (event.key === 'Escape' && event.target.closest('.leaves')) event.target.blur();
      return;
    }
    if (event.target.closest?.('[data-draft]')) return; // desk-assist.js
    if (event.target === $('log') && event.key.startsWith('Arrow')) return; // scrolls
    const action = this.actions.get(event.key);
    if (!action) return;
    event.preventDefault();
    action();
  }
}
