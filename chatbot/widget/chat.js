/** The chat in the frame: puts a Session on the page and the visitor's wishes into the Session. */
import { Host } from './host.js';
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

const host = new Host(query.get('origin') ?? '', {
  init(settings) {
    title = String(settings.title ?? '');
    applyLooks(settings);
    if (settings.jwt) session.identify(settings.jwt);
    session.resume();
    changed();
  },
  opened({ focus }) {
    setOpened(true);
    if (focus) focusInput();
  },
  closed: () => setOpened(false),
  user: ({ jwt }) => session.identify(jwt ?? null),
  reset: () => session.reset(),
});

const session = new Session(query.get('site') ?? '', {
  onChange: changed,
  onMessage: (event) => {
    const role = event.type === 'reply.completed' ? 'bot' : event.role;
    host.tell('message', { role, text: event.text, at: event.at });
  },
  onError: (code, message, retryAfter) => {
    const until = Date.now() + (retryAfter * 1000 || 8_000);
    // that the site's login did not work is its developer's business, not the visitor's
    if (code !== 'identity_refused') alert = { text: message, until, countDown: retryAfter > 0 };
    host.tell('error', { code, message });
    changed();
  },
});

const messages = new Messages($('log'), (id) => session.retry(id));

// -- looks

function applyLooks({ theme = 'auto', color = '', ink = '' }) {
  const root = document.documentElement;
  root.dataset.theme = ['light', 'dark'].includes(theme) ? theme : 'auto';
  if (/^#[\da-f]{6}$/iu.test(color)) {
    root.style.setProperty('--accent', color);
    root.style.setProperty('--on-accent', ink === '#000000' ? '#14181f' : '#ffffff');
  }
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
  const target = $('composer').hidden ? $('again') : $('text');
  target.focus({ preventScroll: true });
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
  const { events, live, status } = session.transcript;
  if (status !== 'bot' || live?.text) return null;
  const last = events.findLast((event) => /^(message|reply)\./u.test(event.type));
  return last?.role === 'visitor' ? last : null;
}

function extraItems() {
  const asked = unanswered();
  if (!asked || !session.connected) return [];
  const items = [{ key: 'typing', kind: 'typing', text: 'The assistant is writing' }];
  if (Date.now() - asked.at > SLOW_MS) {
    items.push({ key: 'slow', kind: 'line', text: 'This takes longer than usual. You can also talk to a person.' });
  }
  return items;
}

function show() {
  const { transcript } = session;
  const items = listItems(transcript, {
    viewer: 'visitor',
    entries: session.outbox.entries,
    connected: session.connected,
    greeting: session.info && (session.info.welcome || 'Hello! How can we help you?'),
    extra: extraItems(),
  });
  messages.show(items);
  $('newest').hidden = messages.following;
  showHeader();
  showBanner();
  showControls();
  showUnread();
  scheduleTick();
}

function presence() {
  const { status, agent } = session.transcript;
  if (session.link.state === 'connecting' && !session.transcript.epoch) return 'Connecting…';
  if (session.link.state === 'waiting') return 'Offline';
  if (status === 'human') return agent ? `${agent} is here` : 'A person is here';
  if (status === 'waiting') return 'Waiting for a person…';
  if (status === 'closed') return 'Chat ended';
  return 'Assistant · answers at once';
}

function showHeader() {
  const { status, agent } = session.transcript;
  const name = title || session.info?.title || 'Chat with us';
  const mark = status === 'human' && agent ? agent : name;
  setText($('title'), name);
  document.title = name;
  setText($('presence'), presence());
  setText($('face'), Array.from(mark.trim())[0]?.toUpperCase() ?? '');
  document.body.dataset.status = status;
  document.body.dataset.link = session.link.state;
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
  if (state === 'ended') {
    return { text: reason || 'This chat cannot be continued here.', action: 'Start a new chat', run: () => session.startNew() };
  }
  if (state === 'idle' || state === 'open') troubleSince = 0;
  else troubleSince ||= Date.now();
  const long = troubleSince && Date.now() - troubleSince > NOTICE_MS;
  if (long && navigator.onLine === false) return { text: 'You are offline. Your chat goes on when you are back.' };
  if (long && code === 4429) return { text: `Too much at once. Trying again in ${seconds(retryAt)} s.` };
  if (long && state === 'waiting') {
    return { text: `No connection. Trying again in ${seconds(retryAt)} s.`, action: 'Try now', run: () => session.connection.check() };
  }
  if (long) return { text: 'Connecting…' };
  if (!alert || alert.until <= Date.now()) return null;
  return { text: alert.countDown ? `${alert.text} Try again in ${seconds(alert.until)} s.` : alert.text };
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
  const { status, live } = session.transcript;
  const closed = status === 'closed' && !session.outbox.entries.length;
  $('composer').hidden = closed;
  $('ended').hidden = !closed;
  $('stop').hidden = !live || status !== 'bot';
  $('stop').disabled = session.stopping;
  // one round button at a time, unless something is typed while the bot writes
  $('send').hidden = !$('stop').hidden && !$('text').value.trim();
  $('person').hidden = status !== 'bot';
  $('send').disabled = !$('text').value.trim();
  const rated = session.transcript.events.some((event) => event.type === 'rating.given');
  $('rating').hidden = rated;
  $('thanks').hidden = !rated;
}

function showUnread() {
  if (opened && document.visibilityState === 'visible') session.markSeen();
  host.tell('unread', { count: opened ? 0 : session.unread() });
}

/** Count-downs and the slow notice need a look at the clock now and then. */
function scheduleTick() {
  clearTimeout(tick);
  const waits = !$('banner').hidden || troubleSince || unanswered();
  if (waits && session.link.state !== 'ended') tick = setTimeout(changed, 1_000);
}

// -- the visitor's wishes

function send() {
  const text = $('text').value;
  if (!text.trim()) return;
  $('text').value = '';
  grow();
  session.send(text);
  show();
  messages.toEnd();
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

function buildStars() {
  for (let score = 1; score <= 5; score += 1) {
    const input = Object.assign(document.createElement('input'), { type: 'radio', name: 'score', value: score, id: `star-${score}` });
    const label = Object.assign(document.createElement('label'), { htmlFor: input.id, title: `${score} of 5`, textContent: '★' });
    label.setAttribute('aria-label', `${score} of 5`);
    $('stars').append(input, label);
  }
}

function wire() {
  $('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    send();
  });
  $('text').addEventListener('input', typed);
  $('text').addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener('keydown', (event) => event.key === 'Escape' && host.tell('close'));
  $('close').addEventListener('click', () => host.tell('close'));
  $('stop').addEventListener('click', () => session.stop());
  $('person').addEventListener('click', () => session.askForPerson());
  $('again').addEventListener('click', () => {
    session.startNew();
    show();
    focusInput();
  });
  $('newest').addEventListener('click', () => messages.toEnd());
  $('log').addEventListener('scroll', () => ($('newest').hidden = messages.following), { passive: true });
  $('banner-action').addEventListener('click', () => bannerRun?.());
  $('stars').addEventListener('change', () => ($('rating-more').hidden = false));
  $('rating').addEventListener('submit', (event) => {
    event.preventDefault();
    const score = Number(new FormData($('rating')).get('score'));
    if (score) session.rate(score, $('comment').value.trim());
  });
  document.addEventListener('visibilitychange', changed);
  window.addEventListener('online', changed);
  window.addEventListener('offline', changed);
}

function start() {
  if (!host.genuine() || !session.site) {
    $('composer').hidden = true;
    $('banner').hidden = false;
    $('banner-text').textContent = 'This chat was opened in a page that it does not know.';
    return;
  }
  $('close').hidden = host.standalone;
  buildStars();
  wire();
  host.listen();
  if (host.standalone) {
    session.resume();
    setOpened(true);
  }
  show();
}

start();
