/** The chat in the frame: puts a Session on the page and the visitor's wishes into the Session. */
import { Menu, chime, copyText, download, transcriptText } from './extras.js';
import { Host } from './host.js';
import { codePoints } from './client.js';
import { has, large, pickLocale, t, translate, useLocale } from './i18n.js';
import { applyLooks } from './looks.js';
import { allowLinks } from './markdown.js';
import { Panels } from './panels.js';
import { Session } from './session.js';
import { Messages, listItems } from './view.js';

const SLOW_MS = 20_000; // after so long without a first word, say so
const NOTICE_MS = 1_500; // a reconnect shorter than this is not worth a banner
const TYPING_MS = 3_000;

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(window.location.search);

let opened = false; // is the panel open on the page around us
let alert = null; // {text, until} a passing notice
let troubleSince = 0; // when the connection was last good
let typedAt = 0;
let tick = 0;
let title = '';
let soundWanted = false; // as the page has it, until the visitor chooses
let told = ''; // what the page was told last of unread messages
let status = 'bot';

const host = new Host(query.get('origin') ?? '', {
  async init(settings) {
    title = String(settings.title ?? '');
    soundWanted = settings.sound === true;
    applyLooks(settings);
    if (settings.asks) session.requireConsent();
    if (settings.agreed === true) session.agree();
    if (settings.agreed === false) session.withdraw();
    if (settings.facts) session.describe(settings.facts);
    await speak(settings.locale);
    if (settings.jwt) session.identify(settings.jwt);
    session.resume();
    host.tell('storage', { allowed: session.mayKeep });
    changed();
  },
  opened({ focus }) {
    setOpened(true);
    if (focus) focusInput();
  },
  closed: () => setOpened(false),
  user: ({ jwt }) => session.identify(jwt ?? null),
  facts: ({ facts }) => session.describe(facts),
  locale: ({ locale }) => speak(locale),
  looks: (looks) => applyLooks(looks),
  consent: ({ given }) => (given ? session.agree() : session.withdraw()),
  reset: () => session.reset(),
});

const session = new Session(query.get('site') ?? '', {
  onChange: changed,
  onMessage: (event) => {
    const role = event.type === 'reply.completed' ? 'bot' : event.role;
    const mine = role === 'visitor';
    if (mine && session.transcript.events.filter((one) => one.role === 'visitor').length === 1) host.tell('started');
    host.tell('message', { role, text: event.text, at: event.at });
    if (!mine && sound() && !watched()) chime();
  },
  onError: (code, message, retryAfter, id) => {
    const until = Date.now() + (retryAfter * 1000 || 8_000);
    // that the site's login did not work is its developer's business, not the visitor's; and
    // a message that was refused says so itself
    if (code !== 'identity_refused' && (!id || retryAfter)) alert = { text: errorText({ code, message }), until, countDown: retryAfter > 0 };
    host.tell('error', { code, message });
    changed();
  },
  onConsent: (state) => {
    host.tell('storage', { allowed: session.mayKeep });
    if (state !== 'free') host.tell('consent', { given: state === 'given' });
    changed();
  },
});

const messages = new Messages($('log'), (id) => session.retry(id), copyText, editAgain);
const panels = new Panels(session, {
  changed,
  show,
  send,
  focus: focusInput,
  close: () => host.tell('close'),
  rated: (score) => host.tell('rated', { score }),
  tell: (text) => (alert = { text, until: Date.now() + 12_000 }),
});
const menu = new Menu($('more'), $('menu'));

function errorText({ code, message }) {
  const max = session.info?.max_chars;
  if (max && ['too_long', 'too_big'].includes(code)) return t('error.too_long', { max: large(max) });
  if (code === 'too_long') return t('error.too_big'); // the limit is not known yet
  if (has(`error.${code}`)) return t(`error.${code}`);
  return code === 'identity_refused' ? message : t('error.other');
}

async function speak(wanted) {
  await useLocale(pickLocale(wanted));
  translate();
  messages.clear();
  told = '';
  changed();
}

/** Does the visitor look at the chat now? */
function watched() {
  return opened && document.visibilityState === 'visible';
}

function sound() {
  return session.store.get('sound') ?? soundWanted;
}

function setOpened(value) {
  opened = value;
  if (opened) {
    session.greet();
    messages.toEnd();
  }
  changed();
}

function focusInput() {
  const targets = { consent: 'agree', contact: 'contact-email', ended: 'again' };
  $(targets[panels.instead] ?? 'text').focus({ preventScroll: true });
}

// -- what is to be seen

let scheduled = false;

/** Render soon. Frames stand still in hidden tabs, so a timer stands in for them. */
function changed() {
  if (scheduled) return;
  scheduled = true;
  let done = false;
  const once = () => {
    if (done) return;
    done = true;
    scheduled = false;
    show();
  };
  requestAnimationFrame(once);
  setTimeout(once, 100);
}

/** The message of the visitor that the bot has not begun to answer, if any. */
function unanswered() {
  const { events, live, status: now } = session.transcript;
  if (now !== 'bot' || live?.text) return null;
  const last = events.findLast((event) => /^(message|reply)\./u.test(event.type));
  return last?.role === 'visitor' ? last : null;
}

function extraItems() {
  const asked = unanswered();
  if (!asked || !session.connected) return [];
  const items = [{ key: 'typing', kind: 'typing', text: t('typing.bot') }];
  if (Date.now() - asked.at > SLOW_MS) items.push({ key: 'slow', kind: 'line', text: t('slow') });
  return items;
}

function greeting() {
  return session.info && (session.info.welcome || t('welcome'));
}

function show() {
  allowLinks(session.info?.link_hosts ?? []);
  const items = listItems(session.transcript, {
    viewer: 'visitor',
    entries: session.outbox.entries,
    connected: session.connected,
    greeting: greeting(),
    extra: extraItems(),
    errorText,
  });
  panels.show();
  messages.show(items);
  $('newest').hidden = messages.following;
  showHeader();
  showBanner();
  showControls();
  showUnread();
  scheduleTick();
}

function presence() {
  const { status: now, agent } = session.transcript;
  if (session.link.state === 'connecting' && !session.transcript.epoch) return t('presence.connecting');
  if (session.link.state === 'waiting') return t('presence.offline');
  if (now === 'human') return agent ? t('presence.agent', { name: agent }) : t('presence.person');
  if (now === 'waiting') return t('presence.waiting');
  if (now === 'closed') return t('presence.closed');
  return t('presence.bot');
}

function showHeader() {
  const { agent } = session.transcript;
  const now = session.transcript.status;
  const name = title || session.info?.title || t('title');
  const mark = now === 'human' && agent ? agent : name;
  setText($('title'), name);
  document.title = name;
  setText($('presence'), presence());
  setText($('face'), Array.from(mark.trim())[0]?.toUpperCase() ?? '');
  document.body.dataset.status = now;
  document.body.dataset.link = session.link.state;
  if (now !== status && session.transcript.epoch) host.tell('status', { status: now });
  status = now;
  const said = session.transcript.events.length > 0;
  $('download').hidden = !said;
  $('end').hidden = !said || now === 'closed';
  setText($('sound'), t(sound() ? 'menu.sound_off' : 'menu.sound_on'));
}

/** Write only what is new: a live region announces every write. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function seconds(until) {
  return Math.max(1, Math.ceil((until - Date.now()) / 1000));
}

function bannerOf() {
  const { state, code, reason, retryAt } = session.link;
  if (state === 'ended' && code !== 'consent') {
    const text = has(`error.${code}`) ? errorText({ code }) : reason || t('banner.ended');
    return { text, action: t('again'), run: () => session.startNew() };
  }
  if (state === 'idle' || state === 'open' || state === 'ended') troubleSince = 0;
  else troubleSince ||= Date.now();
  const long = troubleSince && Date.now() - troubleSince > NOTICE_MS;
  if (long && navigator.onLine === false) return { text: t('banner.offline') };
  if (long && code === 4429) return { text: t('banner.too_much', { count: seconds(retryAt) }) };
  if (long && state === 'waiting') {
    return { text: t('banner.lost', { count: seconds(retryAt) }), action: t('banner.try'), run: () => session.connection.check() };
  }
  if (long) return { text: t('presence.connecting') };
  if (!alert || alert.until <= Date.now()) return null;
  return { text: alert.countDown ? `${alert.text} ${t('banner.retry', { count: seconds(alert.until) })}` : alert.text };
}

let bannerRun = null;

function showBanner() {
  const banner = bannerOf();
  $('banner').hidden = !banner;
  bannerRun = banner?.run ?? null;
  if (!banner) return;
  setText($('banner-text'), banner.text);
  $('banner-action').hidden = !banner.action;
  setText($('banner-action'), banner.action ?? '');
}

function showControls() {
  const { status: now, live } = session.transcript;
  $('stop').hidden = !live || now !== 'bot';
  $('stop').disabled = session.stopping;
  // one round button at a time, unless something is typed while the bot writes
  $('send').hidden = !$('stop').hidden && !$('text').value.trim();
  $('person').hidden = now !== 'bot';
  $('send').disabled = !$('text').value.trim();
  showLength();
}

/** Near the longest message and beyond it: how long it is. The text stays where it is. */
function showLength() {
  const text = $('text').value;
  const max = session.info?.max_chars ?? 0;
  const near = max > 0 && text.length > max * 0.9;
  const over = session.tooLong(text);
  $('length').hidden = !near;
  setText($('length'), near ? t('write.length', { now: large(codePoints(text)), max: large(max) }) : '');
  $('text').setAttribute('aria-invalid', String(over));
  if (over) $('send').disabled = true;
}

function showUnread() {
  if (watched()) session.markSeen();
  const count = opened ? 0 : session.unread();
  const open = count ? t('launcher.unread', { count }) : t('launcher.open');
  const words = { count, open, close: t('launcher.close') };
  const now = JSON.stringify(words);
  if (now === told) return;
  told = now;
  host.tell('unread', words);
}

/** Count-downs and the slow notice need a look at the clock now and then. */
function scheduleTick() {
  clearTimeout(tick);
  const waits = !$('banner').hidden || troubleSince || unanswered() || panels.ticking;
  if (waits && session.link.state !== 'ended') tick = setTimeout(changed, 1_000);
}

// -- the visitor's wishes

function send(text) {
  if (!text.trim()) return;
  session.send(text);
  alert = null;
  show();
  messages.toEnd();
}

function sendTyped() {
  const text = $('text').value;
  if (!text.trim()) return;
  if (session.tooLong(text)) {
    alert = { text: errorText({ code: 'too_long' }), until: Date.now() + 8_000 };
    show();
    return;
  }
  $('text').value = '';
  grow();
  send(text);
}

/** A message that can only be refused again goes back into the field, before what is there. */
function editAgain(id) {
  const field = $('text');
  field.value = [session.takeBack(id), field.value].filter(Boolean).join('\n');
  grow();
  show();
  field.focus();
}

function grow() {
  const area = $('text');
  area.style.height = 'auto';
  area.style.height = `${Math.min(area.scrollHeight, 132)}px`;
}

function typed() {
  grow();
  showControls();
  session.connect();
  if (session.transcript.status === 'bot' || Date.now() - typedAt < TYPING_MS) return;
  typedAt = Date.now();
  session.typing();
}

function saveTranscript() {
  const date = new Date().toISOString().slice(0, 10);
  download(transcriptText(session.transcript, greeting()), `chat-${date}.txt`);
}

function wire() {
  $('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    sendTyped();
  });
  $('text').addEventListener('input', typed);
  $('text').addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    sendTyped();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    if (panels.instead === 'contact') panels.closeForm();
    else host.tell('close');
  });
  $('close').addEventListener('click', () => host.tell('close'));
  $('stop').addEventListener('click', () => session.stop());
  $('download').addEventListener('click', saveTranscript);
  $('sound').addEventListener('click', () => {
    session.store.set('sound', !sound());
    if (sound()) chime();
    changed();
  });
  $('end').addEventListener('click', () => session.end());
  $('newest').addEventListener('click', () => messages.toEnd());
  $('log').addEventListener('scroll', () => ($('newest').hidden = messages.following), { passive: true });
  $('banner-action').addEventListener('click', () => bannerRun?.());
  document.addEventListener('visibilitychange', changed);
  window.addEventListener('online', changed);
  window.addEventListener('offline', changed);
}

async function start() {
  if (!host.genuine() || !session.site) {
    await useLocale(pickLocale());
    translate(); // and nothing else: a stranger's page gets no chat
    for (const id of ['composer', 'more']) $(id).hidden = true;
    $('banner').hidden = false;
    $('banner-text').textContent = t('banner.unknown_page');
    return;
  }
  $('close').hidden = host.standalone;
  wire();
  if (!host.standalone) {
    translate();
    host.listen(); // the page answers with its settings
    return;
  }
  await speak(query.get('locale'));
  session.resume();
  setOpened(true);
}

start();
