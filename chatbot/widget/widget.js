/*!
 * Frontdesk widget: <script src="https://your-frontdesk/widget.js" data-site="demo" async></script>
 * Puts a launcher and a chat frame on the page. See docs/embedding.md.
 *
 * Runs in a stranger's page: no globals but window.frontdesk, styles in a shadow root and set
 * through the CSS object model (so a strict style-src of the page does not matter), no request but
 * for the frame itself.
 */
(() => {
  'use strict';
  const before = window.frontdesk;
  if (before?.toggle) return; // the tag is on the page twice, or a page swap ran it again

  const script = document.currentScript ?? document.querySelector('script[data-site][src*="widget.js"]');
  const settings = window.frontdeskSettings ?? {};
  const option = (name, other) => script?.dataset[name] ?? settings[name] ?? other;
  const base = new URL('.', script?.src ?? settings.server ?? document.baseURI);

  const site = String(option('site', ''));
  const left = option('position', 'right') === 'left';
  const title = String(option('title', ''));
  const theme = String(option('theme', 'auto'));
  const color = hexColor(String(option('color', ''))) ?? '#3b5bdb';
  const ink = inkOn(color);
  const startOpen = !['false', undefined, false].includes(option('open', undefined));

  const REMEMBER = `frontdesk:${site}:open`; // in sessionStorage: a reload keeps the panel open
  const UNREACHABLE_MS = 20_000;
  const SVG = 'http://www.w3.org/2000/svg';

  let isOpen = false;
  let hasLoaded = false;
  let unread = 0;
  let jwt = null;
  let patience = 0;

  // -- looks

  /** #rgb or #rrggbb as #rrggbb, else undefined. */
  function hexColor(text) {
    if (/^#[\da-f]{6}$/i.test(text)) return text;
    if (/^#[\da-f]{3}$/i.test(text)) return text.replace(/[\da-f]/gi, '$&$&');
    if (text) console.warn(`frontdesk: data-color="${text}" is no #rrggbb color; the default is used`);
    return undefined;
  }

  /** Black or white, whichever reads better on `hex` (WCAG 2.2 relative luminance). */
  function inkOn(hex) {
    const [r, g, b] = [1, 3, 5].map((at) => {
      const value = parseInt(hex.slice(at, at + 2), 16) / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.36 ? '#000000' : '#ffffff';
  }

  const CSS = `
    :host { all: initial !important; }
    * { box-sizing: border-box; }
    .launcher, .panel { position: fixed; z-index: 2147483000; ${left ? 'left' : 'right'}: 20px; }
    .launcher { bottom: 20px; width: 56px; height: 56px; padding: 0; border: 0; border-radius: 50%;
      background: ${color}; color: ${ink}; cursor: pointer;
      box-shadow: 0 2px 6px rgb(15 20 30 / .16), 0 8px 28px rgb(15 20 30 / .2);
      transition: transform .18s cubic-bezier(.2, .8, .3, 1.2), box-shadow .18s; }
    .launcher:hover { transform: scale(1.06); }
    .launcher:active { transform: scale(.96); }
    .launcher:focus-visible { outline: 3px solid ${color}; outline-offset: 3px; }
    .launcher svg { position: absolute; inset: 0; margin: auto; width: 28px; height: 28px; fill: none;
      stroke: currentColor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round;
      transition: opacity .18s, transform .22s; }
    .launcher .down, .open .launcher .chat { opacity: 0; transform: rotate(40deg) scale(.6); }
    .open .launcher .down { opacity: 1; transform: none; }
    .badge { position: absolute; top: -4px; ${left ? 'left' : 'right'}: -4px; min-width: 21px; height: 21px;
      padding: 0 6px; border-radius: 11px; background: #d92d20; color: #fff; border: 2px solid #fff;
      font: 600 11px/17px system-ui, sans-serif; text-align: center; }
    .badge[hidden] { display: none; }
    .panel { bottom: 90px; width: 400px; max-width: calc(100vw - 40px); height: 680px;
      max-height: calc(100dvh - 110px); border-radius: 18px; overflow: hidden; visibility: hidden; opacity: 0;
      background: Canvas; transform: translateY(14px) scale(.98);
      transform-origin: bottom ${left ? 'left' : 'right'};
      box-shadow: 0 0 0 1px rgb(15 20 30 / .06), 0 12px 48px rgb(15 20 30 / .22);
      transition: opacity .16s, transform .2s cubic-bezier(.2, .8, .3, 1), visibility 0s .2s; }
    .open .panel { visibility: visible; opacity: 1; transform: none; transition-delay: 0s; }
    iframe { display: block; width: 100%; height: 100%; border: 0; color-scheme: normal; }
    @media (max-width: 480px), (max-height: 420px) {
      .panel { inset: 0; width: 100%; max-width: none; height: 100dvh; max-height: none; border-radius: 0; }
      .open .launcher { display: none; }
    }
    @media (prefers-reduced-motion: reduce) { * { transition: none !important; } }
    @media print { .launcher, .panel { display: none; } }`;

  function make(name, className, parent) {
    const node = document.createElement(name);
    if (className) node.className = className;
    parent?.append(node);
    return node;
  }

  function icon(className, path, parent) {
    const svg = document.createElementNS(SVG, 'svg');
    svg.setAttribute('class', className);
    svg.setAttribute('viewBox', '0 0 24 24');
    svg.setAttribute('aria-hidden', 'true');
    const line = document.createElementNS(SVG, 'path');
    line.setAttribute('d', path);
    svg.append(line);
    parent.append(svg);
  }

  const shell = make('frontdesk-widget');
  const shadow = shell.attachShadow({ mode: 'open' });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(CSS);
  shadow.adoptedStyleSheets = [sheet];
  const box = make('div', '', shadow);
  const panel = make('div', 'panel', box);
  panel.id = 'panel';
  const launcher = make('button', 'launcher', box);
  launcher.type = 'button';
  launcher.setAttribute('aria-controls', 'panel');
  icon('chat', 'M21 11.5a8.4 8.4 0 0 1-9 8.4 9.7 9.7 0 0 1-3.6-.7L3 21l1.7-4.6A8.3 8.3 0 0 1 3 11.5a8.5 8.5 0 0 1 9-8.4 8.5 8.5 0 0 1 9 8.4z', launcher);
  icon('down', 'M6 9.5l6 6 6-6', launcher);
  const badge = make('span', 'badge', launcher);
  badge.setAttribute('aria-hidden', 'true');

  const frame = make('iframe');
  frame.title = title || 'Chat';
  frame.allow = 'clipboard-write';
  frame.src = new URL(
    `widget/chat.html?${new URLSearchParams({ site, origin: window.location.origin })}`,
    base,
  ).href;

  function showState() {
    box.className = isOpen ? 'open' : '';
    panel.inert = !isOpen; // at once, not after the transition
    const many = unread > 9 ? '9+' : String(unread);
    badge.textContent = many;
    badge.hidden = !unread || isOpen;
    launcher.setAttribute('aria-expanded', String(isOpen));
    const news = unread ? `, ${unread} unread ${unread === 1 ? 'message' : 'messages'}` : '';
    launcher.setAttribute('aria-label', isOpen ? 'Close chat' : `Open chat${news}`);
  }

  // -- talking to the page and to the frame

  function emit(name, detail = {}) {
    window.dispatchEvent(new CustomEvent(`frontdesk:${name}`, { detail }));
  }

  function fail(code, message) {
    console.warn(`frontdesk: ${message}`);
    emit('error', { code, message });
  }

  function tell(name, data = {}) {
    if (hasLoaded) frame.contentWindow?.postMessage({ frontdesk: 1, name, data }, base.origin);
  }

  const heard = {
    /* The frame says so on each load of its own: after a page swap moved it, too. */
    ready() {
      clearTimeout(patience);
      const first = !hasLoaded;
      hasLoaded = true;
      tell('init', { title, theme, color, ink, jwt });
      if (isOpen) tell('opened', { focus: false });
      if (first) emit('ready');
    },
    close: () => toggle('close'),
    unread({ count }) {
      unread = Number.isInteger(count) && count > 0 ? count : 0;
      showState();
    },
    message: ({ role, text, at }) => emit('message', { role, text, at }),
    error: ({ code, message }) => emit('error', { code, message }),
  };

  window.addEventListener('message', (event) => {
    if (event.source !== frame.contentWindow || event.origin !== base.origin) return;
    const { frontdesk, name, data } = event.data ?? {};
    if (frontdesk === 1 && Object.hasOwn(heard, name)) heard[name](data ?? {});
  });

  // -- opening and closing

  function remember(value) {
    try {
      if (value === undefined) return sessionStorage.getItem(REMEMBER);
      sessionStorage.setItem(REMEMBER, value);
    } catch {
      // storage is blocked: the panel starts closed after a reload
    }
    return null;
  }

  function setOpen(value, focus) {
    if (value === isOpen) return;
    isOpen = value;
    remember(value ? '1' : '0');
    showState();
    tell(value ? 'opened' : 'closed', { focus });
    if (focus) (value ? frame : launcher).focus();
    emit(value ? 'opened' : 'closed');
  }

  function toggle(to) {
    if (![undefined, 'open', 'close'].includes(to)) {
      throw new TypeError(`frontdesk.toggle: expected "open" or "close", got ${JSON.stringify(to)}`);
    }
    setOpen(to === undefined ? !isOpen : to === 'open', true);
  }

  launcher.addEventListener('click', () => toggle());
  shadow.addEventListener('keydown', (event) => event.key === 'Escape' && setOpen(false, true));

  // -- staying on the page

  /* Beside <body>: sites that swap their body keep the frame, and the chat in it, as it is. */
  function attach() {
    if (shell.isConnected) return;
    if (!frame.parentNode) panel.append(frame);
    document.documentElement.append(shell);
  }

  function mount() {
    showState();
    attach();
    // <html> itself may be replaced too, so both levels are watched; neither is busy
    const observer = new MutationObserver(() => {
      if (shell.isConnected) return;
      attach();
      observer.observe(document.documentElement, { childList: true });
    });
    observer.observe(document, { childList: true });
    observer.observe(document.documentElement, { childList: true });
    patience = setTimeout(() => fail('unreachable', `${frame.src} did not load; does frame-src of the page allow it?`), UNREACHABLE_MS);
    if (startOpen ? remember() !== '0' : remember() === '1') setOpen(true, false);
  }

  // -- what pages call

  const methods = {
    toggle,
    /** Log in as the customer that a JWT of the site's back end names. */
    setUser(token) {
      if (typeof token !== 'string' || token.split('.').length !== 3) {
        throw new TypeError('frontdesk.setUser: expected a signed JWT (three parts)');
      }
      jwt = token;
      tell('user', { jwt });
    },
    /** Forget the visitor and the chat in this browser: call it on log-out. */
    reset() {
      jwt = null;
      unread = 0;
      tell('reset');
      setOpen(false, false);
    },
  };

  function call([name, ...values]) {
    try {
      if (!Object.hasOwn(methods, name)) throw new TypeError(`frontdesk has no method "${name}"`);
      methods[name](...values);
    } catch (error) {
      fail('bad_call', error.message);
    }
  }

  window.frontdesk = {
    ...methods,
    get isOpen() {
      return isOpen;
    },
    get hasLoaded() {
      return hasLoaded;
    },
    q: { push: (...calls) => calls.forEach(call) },
  };

  if (!site) fail('no_site', 'the script tag needs data-site="…"');
  else if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', mount);
  else mount();
  (before?.q ?? []).forEach(call);
})();
