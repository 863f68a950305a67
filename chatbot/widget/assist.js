/*!
 * Frontdesk call panel: <script src="https://your-frontdesk/assist.js" data-site="demo" async></script>
 * Puts a frame with the transcript, the summary and the drafts of a call into an agent's desktop.
 * See docs/calls.md.
 *
 * Runs in a stranger's page: no globals but window.frontdeskAssist, no request but for the frame
 * itself. Messages count only from that frame and its origin; ours go to that origin alone.
 */
(() => {
  'use strict';
  const before = window.frontdeskAssist;
  if (before?.open) return; // the tag is on the page twice

  const script = document.currentScript ?? document.querySelector('script[data-site][src*="assist.js"]');
  const base = new URL('.', script.src);
  const { site = '', target = '', theme = 'auto' } = script.dataset;
  const ending = new AbortController();
  let ready = false;
  let call = null; // {session, token}, until the frame can have it

  const emit = (name, detail) => window.dispatchEvent(new CustomEvent(`frontdesk-assist:${name}`, { detail }));
  const fail = (code, message) => emit('error', { code, message });

  const address = new URL('assist', base);
  address.searchParams.set('site', site);
  address.searchParams.set('origin', window.location.origin);
  const frame = document.createElement('iframe');
  frame.title = 'Call assist';
  frame.src = address;
  for (const [name, value] of [['border', '0'], ['width', '100%'], ['height', '100%'], ['display', 'block']]) frame.style.setProperty(name, value);

  function tell(name, data) {
    if (ready) frame.contentWindow?.postMessage({ frontdesk: 1, name, data }, base.origin);
  }

  const heard = {
    ready() {
      ready = true;
      tell('init', { theme });
      if (call) tell('open', call);
      emit('ready');
    },
    insert: (data) => emit('insert', data),
    token: (data) => emit('token', data),
    closed: (data) => emit('closed', data),
    error: ({ code, message }) => fail(code, message),
  };

  window.addEventListener('message', (event) => {
    if (event.source !== frame.contentWindow || event.origin !== base.origin) return;
    const { frontdesk, name, data } = event.data ?? {};
    if (frontdesk === 1 && Object.hasOwn(heard, name)) heard[name](data ?? {});
  }, { signal: ending.signal });

  const methods = {
    open(session, token) {
      call = { session, token };
      tell('open', call);
    },
    setToken(token) {
      if (call) call.token = token;
      tell('token', { token });
    },
    focus() {
      frame.focus();
      tell('focus', {});
    },
    close() {
      call = null;
      tell('close', {});
    },
    destroy() {
      ending.abort();
      frame.remove();
      delete window.frontdeskAssist;
    },
  };

  function run([name, ...args]) {
    if (Object.hasOwn(methods, name)) methods[name](...args);
    else fail('bad_call', `there is no frontdeskAssist.${name}`);
  }

  window.frontdeskAssist = { ...methods, q: { push: (...calls) => calls.forEach(run) } };
  const place = target ? document.querySelector(target) : null;
  if (!site) fail('no_site', 'the tag names no site: add data-site');
  else if (target && !place) fail('no_target', `nothing on this page is ${target}`);
  else if (place) place.append(frame);
  else script.after(frame);
  for (const queued of before?.q ?? []) run(queued);
})();
