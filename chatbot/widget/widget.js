/*!
 * Frontdesk widget: <script src="https://your-frontdesk/widget.js" data-site="demo" async></script>
 * Puts a launcher and a chat frame on the page. See docs/embedding.md.
 *
 * Runs in a stranger's page: no globals but window.frontdesk, styles in a shadow root and set
 * through the CSS object model (so a strict style-src of the page does not matter), no request but
 * for the frame itself and, where it does not load, one that asks why.
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
  const label = String(option('label', ''));
  const own = String(option('launcher', 'default')); // default, hidden, or a selector of the page's own
  const yes = (name) => !['false', 'off', undefined, false].includes(option(name, undefined));
  const startOpen = yes('open');
  const asks = option('consent') === 'required';
  let theme = String(option('theme', 'auto'));
  let locale = option('locale', undefined);

  const REMEMBER = `frontdesk:${site}:open`; // in sessionStorage: a reload keeps the panel open
  const UNREACHABLE_MS = 20_000;
  const GRACE_MS = 2_000; // a frame says that it is ready before its load event; an error page never does
  const SVG = 'http://www.w3.org/2000/svg';

  let isOpen = false;
  let opener = null; // the page's own button that opened the panel
  let hasLoaded = false;
  let broken = false; // the frame did not load: what it shows is the browser's error page
  let unread = 0;
  let jwt = null;
  let facts = null;
  let agreed; // what the page said of consent, if it did
  let patience = 0;
  let mayStore = false; // in sessionStorage, as consent goes; the frame knows
  let counted = ''; // what stands before the page's own title
  let words = { open: 'Open chat', close: 'Close chat' };
  const ending = new AbortController(); // every listener ends with destroy()
  const { signal } = ending;

  // -- looks

  /** Any opaque CSS color as #rrggbb, else undefined. */
  function hexColor(text) {
    if (!text) return undefined;
    const ink = document.createElement('canvas').getContext('2d');
    const read = (before) => {
      ink.fillStyle = before;
      ink.fillStyle = text; // ignored when it is no color
      return ink.fillStyle;
    };
    const found = read('#000000');
    if (found === read('#ffffff') && /^#[\da-f]{6}$/.test(found)) return found;
    console.warn(`frontdesk: "${text}" is no opaque color; the default is used`);
    return undefined;
  }

  /** Black or white, whichever reads better on `hex` (WCAG 2.2 relative luminance). */
  function inkOn(hex) {
    const [r, g, b] = [1, 3, 5].map((at) => {
      const value = parseInt(hex.slice(at, at + 2), 16) / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? '#000000' : '#ffffff';
  }

  /** What attributes, settings and the page's CSS variables say of the looks now. */
  function looks() {
    const css = getComputedStyle(shell);
    const variable = (name) => css.getPropertyValue(`--frontdesk-${name}`).trim();
    const color = hexColor(String(option('color', '')) || variable('color')) ?? '#3b5bdb';
    box.style.setProperty('--color', color);
    box.style.setProperty('--ink', inkOn(color));
    return { theme, color, radius: variable('radius'), font: variable('font') };
  }

  const CSS = `
    :host { all: initial !important; }
    * { box-sizing: border-box; }
    :host > div { --size: var(--frontdesk-launcher-size, 56px); --gap: var(--frontdesk-gap, 20px); }
    .launcher, .panel { position: fixed; z-index: var(--frontdesk-z-index, 2147483000); ${left ? 'left' : 'right'}: var(--gap); }
    .launcher { bottom: var(--gap); min-width: var(--size); height: var(--size); padding: 0; border: 0; border-radius: calc(var(--size) / 2);
      display: flex; align-items: center; justify-content: center; font: 600 15px/1.2 var(--frontdesk-font, system-ui, sans-serif);
      background: var(--color); color: var(--ink); cursor: pointer;
      box-shadow: 0 2px 6px rgb(15 20 30 / .16), 0 8px 28px rgb(15 20 30 / .2);
      transition: transform .18s cubic-bezier(.2, .8, .3, 1.2), box-shadow .18s; }
    .launcher:hover { transform: scale(1.06); }
    .launcher:active { transform: scale(.96); }
    .launcher:focus-visible { outline: 3px solid var(--color); outline-offset: 3px; }
    .label { padding-inline: 52px 20px; }
    .label:empty, .open .label { display: none; }
    .launcher svg { position: absolute; inset-block: 0; inset-inline-start: calc(var(--size) / 2 - 14px); margin: auto 0; width: 28px; height: 28px; fill: none;
      stroke: currentColor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round;
      transition: opacity .18s, transform .22s; }
    .launcher .down, .open .launcher .chat { opacity: 0; transform: rotate(40deg) scale(.6); }
    .open .launcher .down { opacity: 1; transform: none; }
    .badge { position: absolute; top: -4px; ${left ? 'left' : 'right'}: -4px; min-width: 21px; height: 21px;
      padding: 0 6px; border-radius: 11px; background: #d92d20; color: #fff; border: 2px solid #fff;
      font: 600 11px/17px system-ui, sans-serif; text-align: center; }
    .badge[hidden] { display: none; }
    .bare .launcher { display: none; }
    .panel { bottom: calc(var(--gap) + var(--size) + 14px); width: var(--frontdesk-width, 400px); max-width: calc(100vw - 2 * var(--gap));
      height: var(--frontdesk-height, 680px); max-height: calc(100dvh - 2 * var(--gap) - var(--size) - 14px); border-radius: var(--frontdesk-radius, 18px); overflow: hidden; visibility: hidden; opacity: 0;
      background: Canvas; transform: translateY(14px) scale(.98);
      transform-origin: bottom ${left ? 'left' : 'right'};
      box-shadow: 0 0 0 1px rgb(15 20 30 / .06), 0 12px 48px rgb(15 20 30 / .22);
      transition: opacity .16s, transform .2s cubic-bezier(.2, .8, .3, 1), visibility 0s .2s; }
    .bare .panel { bottom: var(--gap); max-height: calc(100dvh - 2 * var(--gap)); }
    .open .panel { visibility: visible; opacity: 1; transform: none; transition-delay: 0s; }
    iframe { display: block; width: 100%; height: 100%; border: 0; color-scheme: normal; opacity: 0; }
    .loaded iframe { opacity: 1; }
    .broken { display: none; }
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
  const text = make('span', 'label', launcher);
  text.textContent = label;
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
    box.className = `${isOpen ? 'open' : ''} ${own === 'default' ? '' : 'bare'} ${hasLoaded ? 'loaded' : ''} ${broken ? 'broken' : ''}`;
    panel.inert = !isOpen; // at once, not after the transition
    const many = unread > 9 ? '9+' : String(unread);
    badge.textContent = many;
    badge.hidden = !unread || isOpen;
    launcher.setAttribute('aria-expanded', String(isOpen));
    launcher.setAttribute('aria-label', isOpen ? words.close : words.open);
    countInTitle();
  }

  /** "(2) " before the page's title while nobody looks at the page. */
  function countInTitle() {
    const count = unread && document.hidden ? `(${unread > 9 ? '9+' : unread}) ` : '';
    if (count === counted) return;
    const bare = counted && document.title.startsWith(counted) ? document.title.slice(counted.length) : document.title;
    counted = count;
    document.title = count + bare;
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
      broken = false; // it was only slow
      showState();
      const sound = yes('sound');
      tell('init', { title, jwt, facts, locale, sound, asks, agreed, ...looks() });
      if (isOpen) tell('opened', { focus: false });
      if (first) emit('ready');
    },
    close: () => toggle('close'),
    unread({ count, open, close }) {
      const now = Number.isInteger(count) && count > 0 ? count : 0;
      words = { open: String(open), close: String(close) };
      if (now !== unread) emit('unread', { count: now });
      unread = now;
      showState();
    },
    storage({ allowed }) {
      mayStore = allowed === true;
      if (mayStore) remember(isOpen ? '1' : '0');
    },
    started: () => emit('started'),
    message: ({ role, text: said, at }) => emit('message', { role, text: said, at }),
    status: ({ status }) => emit('status', { status }),
    rated: ({ score }) => emit('rated', { score }),
    consent: ({ given }) => emit('consent', { given }),
    error: ({ code, message }) => emit('error', { code, message }),
  };

  window.addEventListener('message', (event) => {
    if (event.source !== frame.contentWindow || event.origin !== base.origin) return;
    const { frontdesk, name, data } = event.data ?? {};
    if (frontdesk === 1 && Object.hasOwn(heard, name)) heard[name](data ?? {});
  }, { signal });

  // -- opening and closing

  function remember(value) {
    try {
      if (value === undefined) return sessionStorage.getItem(REMEMBER);
      if (mayStore) sessionStorage.setItem(REMEMBER, value);
    } catch {
      // storage is blocked: the panel starts closed after a reload
    }
    return null;
  }

  function setOpen(value, focus) {
    if (value === isOpen || (value && broken)) return;
    isOpen = value;
    remember(value ? '1' : '0');
    showState();
    tell(value ? 'opened' : 'closed', { focus });
    if (focus) (value ? frame : (opener?.isConnected ? opener : launcher)).focus();
    emit(value ? 'opened' : 'closed');
  }

  function toggle(to) {
    if (![undefined, 'open', 'close'].includes(to)) {
      throw new TypeError(`frontdesk.toggle: expected "open" or "close", got ${JSON.stringify(to)}`);
    }
    setOpen(to === undefined ? !isOpen : to === 'open', true);
  }

  launcher.addEventListener('click', () => toggle());
  document.addEventListener('visibilitychange', countInTitle, { signal });
  if (!['default', 'hidden'].includes(own)) {
    // listened for on the document: the page may swap the button that it has
    document.addEventListener('click', ({ target }) => {
      const button = target instanceof Element && matching(target);
      if (!button) return;
      opener = button;
      toggle();
    }, { signal });
  }

  function matching(target) {
    try {
      return target.closest(own);
    } catch {
      return fail('bad_call', `data-launcher="${own}" is no CSS selector`);
    }
  }

  shadow.addEventListener('keydown', (event) => event.key === 'Escape' && setOpen(false, true));

  // -- staying on the page

  /* Beside <body>: sites that swap their body keep the frame, and the chat in it, as it is. */
  function attach() {
    if (shell.isConnected) return;
    if (!frame.parentNode) panel.append(frame);
    document.documentElement.append(shell);
  }

  // -- a frame that does not load

  /* Browsers fire load for their error pages, too, and let nobody look inside. */
  frame.addEventListener('load', () => hasLoaded || wait(GRACE_MS));

  function wait(time) {
    clearTimeout(patience);
    patience = setTimeout(giveUp, time);
  }

  /** Take launcher and panel away and say why. Only the server knows its list of origins. */
  async function giveUp() {
    broken = true;
    setOpen(false, false);
    showState();
    const { origin } = window.location;
    const causes = {
      origin_refused: `site "${site}" does not list the origin ${origin}: add it in the console under Sites`,
      unknown_site: `there is no site "${site}": look at data-site, or make it in the console under Sites`,
      unreachable: `does frame-src of the page's Content-Security-Policy allow ${base.origin}?`,
    };
    const reason = await whyNot();
    if (hasLoaded || signal.aborted) return;
    const said = Object.hasOwn(causes, reason) ? causes[reason] : `one of these: ${Object.values(causes).join('; ')} Is the server up?`;
    const message = `the chat did not load: ${said}`;
    if (reason === 'origin_refused') fail('origin_refused', message);
    else if (reason === 'unknown_site') fail('unknown_site', message);
    else fail('unreachable', message);
  }

  /** The server's word on this page and site; undefined where the page's connect-src forbids to ask. */
  async function whyNot() {
    try {
      const url = new URL(`v1/embedding?${new URLSearchParams({ site })}`, base);
      const answer = await fetch(url, { credentials: 'omit', signal: AbortSignal.timeout(5_000) });
      const { allowed, reason } = await answer.json();
      return allowed ? 'unreachable' : reason;
    } catch {
      return undefined;
    }
  }

  let observer;

  function mount() {
    if (signal.aborted) return;
    showState();
    attach();
    looks();
    // <html> itself may be replaced too, so both levels are watched; neither is busy
    observer = new MutationObserver(() => {
      if (shell.isConnected) return;
      attach();
      observer.observe(document.documentElement, { childList: true });
    });
    observer.observe(document, { childList: true });
    observer.observe(document.documentElement, { childList: true });
    wait(UNREACHABLE_MS);
    if (startOpen ? remember() !== '0' : remember() === '1') setOpen(true, false);
  }

  // -- what pages call

  const methods = {
    open: () => toggle('open'),
    close: () => toggle('close'),
    toggle,
    /** Log in as the customer that a JWT of the site's back end names. */
    setUser(token) {
      if (typeof token !== 'string' || token.split('.').length !== 3) {
        throw new TypeError('frontdesk.setUser: expected a signed JWT (three parts)');
      }
      jwt = token;
      tell('user', { jwt });
    },
    /** Tell staff more about the visitor: plain values by name; null removes one. No proof of anything. */
    setCustomAttributes(values) {
      if (values === null || typeof values !== 'object') {
        throw new TypeError('frontdesk.setCustomAttributes: expected an object of plain values');
      }
      const all = Object.entries({ ...facts, ...values }).filter(([, value]) => value !== null && value !== undefined);
      facts = Object.fromEntries(all.slice(0, 30).map(([name, value]) => [name.slice(0, 64), String(value).slice(0, 500)]));
      tell('facts', { facts });
    },
    /** Speak another language: en, zh, es, de or ar; null for the browser's. */
    setLocale(name) {
      locale = name;
      tell('locale', { locale });
    },
    /** auto, light or dark; CSS variables that changed are read again. */
    setTheme(name) {
      theme = String(name);
      tell('looks', looks());
    },
    /** What a consent manager of the page found out. False forgets the chat in this browser. */
    setConsent(given) {
      agreed = given === true;
      tell('consent', { given: agreed });
      if (!agreed) forgetPage();
    },
    /** Forget the visitor and the chat in this browser: call it on log-out. */
    reset() {
      jwt = null;
      facts = null;
      unread = 0;
      tell('reset');
      setOpen(false, false);
    },
    /** Leave the page as if the script had never run. The chat itself is kept. */
    destroy() {
      ending.abort();
      clearTimeout(patience);
      observer?.disconnect();
      unread = 0;
      countInTitle();
      shell.remove();
      delete window.frontdesk;
    },
  };

  function forgetPage() {
    mayStore = false;
    try {
      sessionStorage.removeItem(REMEMBER);
    } catch {
      // blocked: then there is nothing
    }
  }

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
  else if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', mount, { signal });
  else mount();
  (before?.q ?? []).forEach(call);
})();
