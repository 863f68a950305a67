/** Beside the messages: menu, sound, clipboard, the transcript as a file. Each stands alone. */
import { listItems } from './view.js';
import { t } from './i18n.js';

/** A menu button and its menu as the ARIA practices describe it: arrows, Home, End, Escape. */
export class Menu {
  constructor(button, menu) {
    Object.assign(this, { button, menu });
    button.addEventListener('click', () => this.toggle(menu.hidden));
    button.addEventListener('keydown', (event) => {
      if (event.key !== 'ArrowDown') return;
      event.preventDefault();
      this.toggle(true);
    });
    menu.addEventListener('keydown', (event) => this.#key(event));
    menu.addEventListener('click', () => this.toggle(false));
    document.addEventListener('pointerdown', ({ target }) => {
      if (!menu.contains(target) && !button.contains(target)) this.toggle(false, false);
    });
    menu.addEventListener('focusout', ({ relatedTarget }) => {
      if (relatedTarget && !menu.contains(relatedTarget) && relatedTarget !== button) this.toggle(false, false);
    });
  }

  get #items() {
    return [...this.menu.children].filter((item) => !item.hidden);
  }

  toggle(open, focus = true) {
    if (this.menu.hidden === !open) return;
    this.menu.hidden = !open;
    this.button.setAttribute('aria-expanded', String(open));
    if (focus) (open ? this.#items[0] : this.button).focus();
  }

  #key(event) {
    const items = this.#items;
    const at = items.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (event.key === 'Escape') this.toggle(false);
    else if (to !== undefined) items.at(to % items.length).focus();
    else return;
    event.preventDefault();
    event.stopPropagation(); // Escape would close the panel too
  }
}

/** Two soft tones, made here: there is no file to fetch. Silent until the visitor did something. */
export function chime(Context = window.AudioContext) {
  const context = new Context();
  for (const [at, frequency] of [[0, 660], [0.12, 880]]) {
    const tone = context.createOscillator();
    const volume = context.createGain();
    const begin = context.currentTime + at;
    tone.frequency.value = frequency;
    volume.gain.setValueAtTime(0, begin);
    volume.gain.linearRampToValueAtTime(0.12, begin + 0.02);
    volume.gain.exponentialRampToValueAtTime(0.001, begin + 0.3);
    tone.connect(volume).connect(context.destination);
    tone.start(begin);
    tone.stop(begin + 0.32);
    if (at) tone.onended = () => context.close();
  }
}

/** Put `text` on the clipboard and say so on `button`. */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    return; // the page around us does not allow it
  }
  button.setAttribute('aria-label', t('copied'));
  button.classList.add('done');
  setTimeout(() => {
    button.setAttribute('aria-label', t('copy'));
    button.classList.remove('done');
  }, 2_000);
}

/** The conversation as plain text: one paragraph a message. */
export function transcriptText(transcript, greeting) {
  const items = listItems(transcript, { viewer: 'visitor', greeting });
  const lines = items.map((item) => {
    if (item.kind === 'day') return `\n== ${item.text} ==`;
    if (item.kind === 'line') return `-- ${item.text}`;
    const who = item.own ? t('role.you') : item.name;
    const time = new Date(item.at).toISOString().slice(11, 16);
    return `${item.timeless ? '' : `[${time}Z] `}${who}: ${item.text}`;
  });
  return `${lines.join('\n').trim()}\n`;
}

export function download(text, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'text/plain;charset=utf-8' }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
