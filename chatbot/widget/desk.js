/** The agent's desk: puts a DeskSession on the page and the agent's wishes into the session. */
import { DeskSession, login } from './desk-session.js';
import { Messages, clock, listItems } from './view.js';

const $ = (id) => document.getElementById(id);
const STATUS = { bot: 'Bot', waiting: 'Waiting', human: 'Person', closed: 'Closed' };
const RANK = { waiting: 0, human: 1, bot: 2, closed: 3 };
const NOTICE_MS = 8_000;
const LATE_MS = 60_000; // who waits longer is shown in red

let filter = 'all';
let writingNote = false;
let notice = null; // {text, id, until}
let shownId = null;

const session = new DeskSession({
  onChange: changed,
  onError: (text, id) => {
    notice = { text, id, until: Date.now() + NOTICE_MS };
    setTimeout(changed, NOTICE_MS + 50);
    changed();
  },
  onLogout: showGate,
});
const messages = new Messages($('log'), (id) => session.retry(id));
const rows = new Map(); // conversation id -> its <li>

// -- small things

function make(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** Write only what is new: a live region announces every write. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function duration(ms) {
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 1) return `${Math.max(0, Math.floor(ms / 1000))} s`;
  if (minutes < 60) return `${minutes} min`;
  return minutes < 1440 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1440)} d`;
}

const shortName = (visitor) => `Visitor ${visitor.replace(/^v-/u, '').slice(0, 8)}`;
const isMine = (line) => line.status === 'human' && line.agent === session.user?.username;

let scheduled = false;

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
  setTimeout(once, 100); // frames stand still in hidden tabs
}

// -- login

function showGate(why) {
  $('gate').hidden = false;
  $('desk').hidden = true;
  $('login-error').hidden = !why;
  $('login-error').textContent = why;
  $('username').focus();
}

async function submitLogin(event) {
  event.preventDefault();
  const button = $('login').querySelector('button');
  button.disabled = true;
  try {
    const { token } = await login($('username').value.trim(), $('password').value);
    $('password').value = '';
    enter(token);
  } catch (error) {
    $('login-error').hidden = false;
    $('login-error').textContent = error.message;
    $('password').select();
  } finally {
    button.disabled = false;
  }
}

function enter(token) {
  $('gate').hidden = true;
  $('desk').hidden = false;
  const wanted = decodeURIComponent(window.location.hash.slice(1));
  if (/^[\w.:-]{1,64}$/u.test(wanted)) session.select(wanted);
  session.start(token);
}

// -- the list

/** Those who wait stand first, the longest wait on top; then the latest activity. */
function sorted() {
  const since = (line) => session.waitingSince.get(line.conversation_id) ?? 0;
  return [...session.lines.values()].sort(
    (a, b) => RANK[a.status] - RANK[b.status] || isMine(b) - isMine(a) || since(a) - since(b) || b.updated_at - a.updated_at,
  );
}

function visible() {
  const lines = sorted();
  if (filter === 'waiting') return lines.filter((line) => line.status === 'waiting');
  return filter === 'mine' ? lines.filter(isMine) : lines;
}

function showFilters() {
  const lines = [...session.lines.values()];
  const counts = { all: lines.length, waiting: lines.filter((line) => line.status === 'waiting').length, mine: lines.filter(isMine).length };
  for (const button of document.querySelectorAll('[data-filter]')) {
    const { filter: name } = button.dataset;
    setText(button.querySelector('span'), counts[name] ? String(counts[name]) : '');
    button.setAttribute('aria-pressed', String(name === filter));
  }
  document.title = counts.waiting ? `(${counts.waiting}) Desk · Frontdesk` : 'Desk · Frontdesk';
}

function row(id) {
  const parts = { name: make('span', 'name'), time: make('span', 'time'), preview: make('span', 'preview'), badge: make('span', 'badge'), site: make('span', 'site') };
  const button = make('button', 'row', make('span', 'top', parts.name, parts.time), parts.preview, make('span', 'bottom', parts.badge, parts.site));
  button.type = 'button';
  button.addEventListener('click', () => open(id));
  const node = make('li', '', button);
  rows.set(id, { node, button, ...parts });
  return rows.get(id);
}

function showRow(line) {
  const { button, name, time, preview, badge, site } = rows.get(line.conversation_id) ?? row(line.conversation_id);
  const since = session.waitingSince.get(line.conversation_id);
  setText(name, shortName(line.visitor));
  setText(time, since ? `waits ${duration(Date.now() - since)}` : clock(line.updated_at));
  time.classList.toggle('late', Boolean(since) && Date.now() - since > LATE_MS);
  setText(preview, session.visitorTypes(line.conversation_id) ? 'typing…' : line.preview || 'No message yet');
  setText(badge, line.status === 'human' ? (isMine(line) ? 'You' : line.agent) : STATUS[line.status]);
  badge.dataset.status = line.status;
  setText(site, line.site);
  button.setAttribute('aria-current', String(line.conversation_id === session.selected));
}

function showList() {
  const lines = visible();
  for (const line of lines) showRow(line);
  const nodes = lines.map((line) => rows.get(line.conversation_id).node);
  const list = $('list');
  if (nodes.length !== list.children.length || nodes.some((node, at) => node !== list.children[at])) {
    const focused = document.activeElement;
    list.replaceChildren(...nodes);
    if (list.contains(focused)) focused.focus(); // moving an element takes its focus away
  }
  for (const id of rows.keys()) if (!session.lines.has(id)) rows.delete(id);
  $('list-empty').hidden = lines.length > 0;
  const why = filter === 'all' ? 'No conversations now. New ones appear here by themselves.' : 'Nothing here now.';
  setText($('list-empty'), session.connected || lines.length ? why : 'Connecting…');
}

// -- the conversation

/** A line is missing while a conversation is opened by its address before the list came. */
function openLine() {
  const { selected, transcript, line } = session;
  return line ?? { conversation_id: selected, visitor: selected ?? '', site: '', status: transcript?.status ?? 'bot', agent: transcript?.agent ?? '', created_at: 0 };
}

function showTalk() {
  const { transcript } = session;
  $('none').hidden = Boolean(transcript);
  $('open').hidden = !transcript;
  $('desk').classList.toggle('has-open', Boolean(transcript));
  if (!transcript) return;
  const changedTalk = shownId !== session.selected;
  if (changedTalk) messages.clear();
  shownId = session.selected;
  const items = listItems(transcript, {
    viewer: 'agent',
    entries: session.pending(session.selected),
    connected: session.connected,
    extra: session.visitorTypes(session.selected) ? [{ key: 'typing', kind: 'typing', text: 'The visitor is typing' }] : [],
  });
  messages.show(items);
  if (changedTalk) messages.toEnd();
  $('newest').hidden = messages.following;
  showHead(transcript);
  showComposer(transcript);
}

function substatus({ status, agent, live }) {
  if (status === 'human') return session.holding ? 'You hold it; the bot is silent' : `${agent} holds it`;
  if (status === 'waiting') return 'A person is asked for';
  if (status === 'closed') return 'Ended';
  return live ? 'The bot is writing…' : 'The bot answers';
}

function showHead(transcript) {
  const { status } = transcript;
  setText($('who'), shortName(openLine().visitor));
  setText($('status'), STATUS[status]);
  $('status').dataset.status = status;
  setText($('substatus'), substatus(transcript));
  const may = session.connected;
  $('claim').hidden = status === 'human' || status === 'closed';
  $('claim').disabled = !may;
  $('release').hidden = !session.holding && status !== 'waiting';
  $('release').disabled = !may;
  $('close').hidden = status === 'closed';
  // what a colleague holds only they may end, or an administrator
  const others = status === 'human' && !session.holding && session.user?.role !== 'admin';
  $('close').disabled = !may || others;
  const shown = notice && notice.until > Date.now() && (notice.id === null || notice.id === session.selected);
  $('notice').hidden = !shown;
  if (shown) setText($('notice'), notice.text);
}

function composerHint({ status, agent }) {
  if (writingNote) return 'Only staff see this note…';
  if (session.holding) return 'Write to the visitor…';
  if (status === 'human') return `${agent} holds this conversation. You can leave a private note.`;
  if (status === 'closed') return 'This conversation is closed.';
  return 'Take over to write to the visitor.';
}

const mayWrite = () => Boolean(session.transcript) && (writingNote || session.holding);

function showComposer(transcript) {
  const can = mayWrite();
  $('composer').classList.toggle('note', writingNote);
  $('mode-reply').setAttribute('aria-pressed', String(!writingNote));
  $('mode-note').setAttribute('aria-pressed', String(writingNote));
  $('text').disabled = !can;
  $('text').placeholder = composerHint(transcript);
  $('send').disabled = !can || !$('text').value.trim();
  setText($('send'), writingNote ? 'Add note' : 'Send');
}

// -- facts

function versionsOf({ events, live }) {
  const counts = new Map();
  for (const { version } of [...events, live ?? {}]) if (version) counts.set(version, (counts.get(version) ?? 0) + 1);
  return [...counts].map(([version, count]) => `${version} (${count} ${count === 1 ? 'reply' : 'replies'})`).join('\n');
}

function showFacts() {
  const { transcript } = session;
  const facts = [];
  if (transcript) {
    const line = openLine();
    const { events } = transcript;
    const rating = events.findLast((event) => event.type === 'rating.given');
    const started = line.created_at || events[0]?.at;
    facts.push(['Visitor', line.visitor], ['Site', line.site], ['Status', STATUS[transcript.status]], ['Held by', transcript.agent]);
    facts.push(['Started', started ? new Date(started).toLocaleString() : ''], ['Messages', String(events.filter((event) => /^(message|reply)\./u.test(event.type)).length)]);
    facts.push(['Answered by', versionsOf(transcript)], ['Rating', rating ? `${'★'.repeat(rating.score)} ${rating.comment ?? ''}` : ''], ['Conversation', line.conversation_id]);
  }
  const shown = facts.filter(([, value]) => value);
  const seal = JSON.stringify(shown);
  if ($('facts').dataset.seal === seal) return;
  $('facts').dataset.seal = seal;
  $('facts').replaceChildren(...shown.flatMap(([name, value]) => [make('dt', '', name), make('dd', /^[vc]-/u.test(value) ? 'id' : '', value)]));
}

function showBar() {
  const { state, retryAt } = session.link;
  const wait = Math.max(1, Math.ceil(((retryAt ?? 0) - Date.now()) / 1000));
  const texts = { open: 'Live', connecting: 'Connecting…', waiting: `No connection, trying again in ${wait} s` };
  setText($('link'), texts[state] ?? '');
  $('link').dataset.state = state;
  setText($('me'), session.user ? `${session.user.username} · ${session.user.role}` : '');
}

function show() {
  if ($('desk').hidden) return;
  showBar();
  showFilters();
  showList();
  showTalk();
  showFacts();
}

// -- the agent's wishes

function open(id) {
  session.select(id);
  window.history.replaceState(null, '', `#${id}`);
  writingNote = false;
  $('text').value = '';
  show();
  rows.get(id)?.node.scrollIntoView({ block: 'nearest' });
}

function move(step) {
  const ids = visible().map((line) => line.conversation_id);
  if (!ids.length) return;
  const at = ids.indexOf(session.selected);
  open(ids[Math.min(ids.length - 1, Math.max(0, at < 0 ? 0 : at + step))]);
}

function setMode(note) {
  writingNote = note;
  show();
  $('text').focus();
}

function send(event) {
  event?.preventDefault();
  const text = $('text').value;
  if (!mayWrite() || !text.trim()) return;
  session.write(writingNote ? 'note.add' : 'message.send', text);
  $('text').value = '';
  show();
  messages.toEnd();
}

function press(id) {
  const button = $(id);
  if (!button.hidden && !button.disabled) button.click();
}

const KEYS = {
  j: () => move(1),
  ArrowDown: () => move(1),
  k: () => move(-1),
  ArrowUp: () => move(-1),
  c: () => press('claim'),
  r: () => press('release'),
  w: () => setMode(false),
  n: () => setMode(true),
  '?': () => $('help').showModal(),
};

function onKey(event) {
  const typing = event.target.closest?.('input, textarea, dialog[open]');
  if (event.ctrlKey || event.metaKey || event.altKey || $('desk').hidden) return;
  if (typing) {
    if (event.key === 'Escape' && event.target === $('text')) $('text').blur();
    return;
  }
  if (event.target === $('log') && event.key.startsWith('Arrow')) return; // scrolls
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
}

/** Enter sends; with Ctrl, Cmd or Shift it is a new line. */
function onTextKey(event) {
  if (event.key !== 'Enter' || event.isComposing || event.shiftKey) return;
  event.preventDefault();
  if (!event.ctrlKey && !event.metaKey) send();
  else $('text').setRangeText('\n', $('text').selectionStart, $('text').selectionEnd, 'end');
}

function wireDialogs() {
  $('help-open').addEventListener('click', () => $('help').showModal());
  $('close').addEventListener('click', () => $('closing').showModal());
  for (const button of document.querySelectorAll('[data-dismiss]')) {
    button.addEventListener('click', () => button.closest('dialog').close());
  }
  $('closing-form').addEventListener('submit', (event) => {
    event.preventDefault();
    session.close($('reason').value.trim());
    $('reason').value = '';
    $('closing').close();
  });
}

function wire() {
  $('login').addEventListener('submit', submitLogin);
  $('logout').addEventListener('click', () => session.logout());
  $('claim').addEventListener('click', () => session.claim());
  $('release').addEventListener('click', () => session.release());
  $('composer').addEventListener('submit', send);
  $('text').addEventListener('keydown', onTextKey);
  $('text').addEventListener('input', changed);
  $('mode-reply').addEventListener('click', () => setMode(false));
  $('mode-note').addEventListener('click', () => setMode(true));
  $('newest').addEventListener('click', () => messages.toEnd());
  $('log').addEventListener('scroll', () => ($('newest').hidden = messages.following), { passive: true });
  for (const button of document.querySelectorAll('[data-filter]')) {
    button.addEventListener('click', () => {
      filter = button.dataset.filter;
      show();
    });
  }
  document.addEventListener('keydown', onKey);
  document.addEventListener('visibilitychange', changed);
  setInterval(changed, 1_000); // waiting times and count-downs
  wireDialogs();
}

wire();
if (session.loggedIn) enter();
else showGate('');
