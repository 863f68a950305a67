/** Drafts for the open question: cards that an agent sends, edits or turns down, all by key. */
import { $, make, refill, setText } from './desk-dom.js';

const SOURCES = { model: 'written by', past: 'said in' };

/** A version that was never tuned: `base_version_id` of chatbot/versions.py. */
const untuned = ({ source: kind, origin }) => kind === 'model' && origin.startsWith('base-');

function source(draft) {
  const where = untuned(draft) ? 'written by the untuned base model' : `${SOURCES[draft.source]} ${draft.origin}`;
  return draft.agreed ? `${where}, as people said before` : where;
}

export class Assist {
  #told = new Set(); // sets that the server knows were seen
  #rejected = new Set();

  /** `edit(text, ref)` puts a draft into the field; `tell(text)`; `leave()` gives the focus back; `verb` names what sending is. */
  constructor(session, { edit, tell, leave, verb = 'Send' }) {
    Object.assign(this, { session, edit, tell, leave, verb });
    $('drafts').addEventListener('keydown', (event) => this.#key(event));
    $('drafts').addEventListener('click', (event) => this.#click(event));
  }

  get #set() {
    return this.session.suggestions;
  }

  /** The drafts that were not turned down. */
  get #drafts() {
    const { suggestions_id: id, drafts = [] } = this.#set ?? {};
    return drafts.filter((draft) => draft.text.trim() && !this.#rejected.has(`${id}.${draft.id}`));
  }

  show() {
    const { asking } = this.session;
    const drafts = asking ? this.#drafts : [];
    $('assist').hidden = !asking;
    const state = this.#set?.complete ? (drafts.length ? 'Drafts' : 'No draft left') : 'Drafting…';
    setText($('assist-state'), state);
    const focused = document.activeElement?.closest?.('[data-draft]')?.dataset.draft;
    refill($('drafts'), [this.#set?.suggestions_id, drafts], () => drafts.map((draft, at) => this.#card(draft, at)));
    if (focused && !$('drafts').contains(document.activeElement)) this.#focus(focused);
    this.#seen(drafts);
  }

  #card(draft, at) {
    const percent = Math.round(draft.confidence * 100);
    const sure = this.#set.complete || draft.source === 'past' ? `${percent} %` : '…';
    // a base model is sure of its words whatever they say: nobody shall take that for a measure
    const note = untuned(draft) ? source(draft) : `${source(draft)} · ${sure} sure`;
    const node = make('li', 'draft', make('p', 'plain', draft.text), make('div', 'muted', note));
    node.dataset.draft = draft.id;
    node.tabIndex = at === 0 ? 0 : -1;
    const buttons = make('div', 'draft-buttons');
    for (const [does, label, key] of [['send', this.verb, '⏎'], ['edit', 'Edit', 'e'], ['reject', 'No', 'Del']]) {
      const button = make('button', 'button', label, ' ', make('kbd', '', key));
      button.type = 'button';
      button.tabIndex = -1;
      button.dataset.does = does;
      buttons.append(button);
    }
    node.append(buttons);
    return node;
  }

  /** What a person could read on a visible page counts as displayed, once it is whole. */
  #seen(drafts) {
    const id = this.#set?.suggestions_id;
    if (!this.#set?.complete || !drafts.length || this.#told.has(id) || document.hidden) return;
    this.#told.add(id);
    this.session.feedback({ displayed: true });
  }

  /** Give the drafts the focus; false when there is none. */
  enter() {
    const first = $('drafts').firstElementChild;
    first?.focus();
    return Boolean(first);
  }

  /** `send`, `edit` or `reject` the first draft, or the one with this id. */
  act(does, id = this.#drafts[0]?.id) {
    const draft = this.#drafts.find((one) => one.id === id);
    if (!draft) return;
    const ref = { suggestions_id: this.#set.suggestions_id, draft_id: draft.id };
    if (does === 'reject') {
      this.#rejected.add(`${ref.suggestions_id}.${draft.id}`);
      this.session.feedback({ rejected: draft.id });
      this.session.onChange();
    } else if (!this.session.holding) this.tell('Take the conversation over first (c): then you can send a draft.');
    else if (!this.#set.complete && draft.source === 'model') this.tell('This draft is still being written.');
    else if (does === 'edit') this.edit(draft.text, ref);
    else {
      this.session.write('message.send', draft.text, ref);
      this.leave();
    }
  }

  #focus(id) {
    (document.querySelector(`[data-draft="${CSS.escape(id)}"]`) ?? $('drafts').firstElementChild)?.focus();
  }

  #key(event) {
    const card = event.target.closest('[data-draft]');
    const keys = { Enter: 'send', e: 'edit', Delete: 'reject', Backspace: 'reject' };
    if (event.key === 'ArrowDown') (card.nextElementSibling ?? card).focus();
    else if (event.key === 'ArrowUp' && !card.previousElementSibling) this.leave();
    else if (event.key === 'ArrowUp') card.previousElementSibling.focus();
    else if (event.key === 'Escape') this.leave();
    else if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) this.act(keys[event.key], card.dataset.draft);
    else return;
    event.preventDefault();
  }

  #click(event) {
    const button = event.target.closest('[data-does]');
    if (button) this.act(button.dataset.does, button.closest('[data-draft]').dataset.draft);
  }
}
