/**
 * Words in the visitor's language, from locales/*.json. English is there as soon as this module
 * is; another language takes its place by `useLocale`.
 */
export const LOCALES = ['en', 'zh', 'es', 'de', 'ar'];
const RIGHT_TO_LEFT = new Set(['ar']);

let words = {};
let plural = new Intl.PluralRules('en');
let number = new Intl.NumberFormat('en', { useGrouping: false });

/** Of which language the words are now; undefined before one was asked for: the browser's own formats. */
export let locale;

/** The first of `wanted` and the browser's languages that there is a file for. */
export function pickLocale(wanted, preferred = navigator.languages) {
  const bases = [wanted, ...preferred].map((tag) => String(tag ?? '').toLowerCase().split(/[-_]/u)[0]);
  return bases.find((base) => LOCALES.includes(base)) ?? 'en';
}

async function load(name) {
  const response = await fetch(new URL(`locales/${name}.json`, import.meta.url), { credentials: 'omit' });
  if (!response.ok) throw new Error(`locales/${name}.json: ${response.status}`);
  words = await response.json();
  plural = new Intl.PluralRules(name);
  number = new Intl.NumberFormat(name, { useGrouping: false });
}

/** Speak `name` from now on. A language that cannot be loaded changes nothing. */
export async function useLocale(name) {
  if (name === locale) return;
  try {
    if (name !== 'en' || locale) await load(name);
  } catch (error) {
    console.warn(`frontdesk: ${error.message}`);
    return;
  }
  locale = name;
}

export function has(key) {
  return Object.hasOwn(words, key);
}

/** The words for `key`; `{name}` stands for a value, `{count}` also chooses the plural's form. */
export function t(key, values = {}) {
  const found = words[key] ?? key;
  const text = typeof found === 'string' ? found : (found[plural.select(values.count)] ?? found.other);
  return text.replace(/\{(\w+)\}/gu, (_, name) => {
    const value = values[name] ?? '';
    return typeof value === 'number' ? number.format(value) : value;
  });
}

/** A large number as the language writes it, such as 8,000. */
export function large(value) {
  return value.toLocaleString(locale ?? 'en');
}

/** Fill everything in the page that says which words it wants: `data-t="key"`, `data-t-label="key"` ... */
export function translate(root = document) {
  for (const node of root.querySelectorAll('[data-t]')) node.textContent = t(node.dataset.t);
  for (const [name, attribute] of [['label', 'aria-label'], ['placeholder', 'placeholder'], ['title', 'title']]) {
    for (const node of root.querySelectorAll(`[data-t-${name}]`)) {
      node.setAttribute(attribute, t(node.getAttribute(`data-t-${name}`)));
    }
  }
  document.documentElement.lang = locale ?? 'en';
  document.documentElement.dir = RIGHT_TO_LEFT.has(locale) ? 'rtl' : 'ltr';
}

await load('en').catch((error) => console.warn(`frontdesk: ${error.message}`));
