/** The agent's desk: puts a DeskSession on the page and the agent's wishes into the session. */
import { Assist } from './desk-assist.js';
import { Canned, nextBlank } from './desk-canned.js';
import { $, duration, face, refill, setText, shortName } from './desk-dom.js';
import { Facts } from './desk-facts.js';
import { Keys } from './desk-keys.js';
import { ConversationList, STATUS } from './desk-list.js';
import { DeskSession, login } from './desk-session.js';
import { Messages, listItems } from './view.js';

const NOTICE_MS = 8_000;

let writingNote = false;
let notice = null; // {text, id, until}
let shownId = null;

let editing = null; // the draft that the text in the field began as

const session = new DeskSession({ onChange: changed, onError: tell, onLogout: showGate, onWithdrawn });
const messages = new Messages($('log'), (id) => session.retry(id));
const list = new ConversationList(session, open);
const facts = new Facts(session);
const canned = new Canned(session, { values: variables, onError: (text) => tell(text, null), onInsert: show });

const assist = new Assist(session, { edit: editDraft, tell: (text) => tell(text, session.selected), leave: () => $('text').focus() });

function tell(text, id) {
  notice = { text, id, until: Date.now() + NOTICE_MS };
  setTimeout(changed, NOTICE_MS + 50);
  changed();
}

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
  canned.load();
}

// -- the conversation

/** A line is missing while a conversation is opened by its address before the list came. */
function openLine() {
  const { selected, transcript, line } = session;
  return line ?? { conversation_id: selected, visitor: selected ?? '', site: '', status: transcript?.status ?? 'bot', agent: transcript?.agent ?? '', created_at: 0 };
}

function variables() {
  const { conversation_id: conversation, site } = openLine();
  return { agent: session.user.username, site, conversation, today: new Date().toLocaleDateString() };
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
  if (status === 'waiting') {
    const { since, reason } = openLine();
    return since ? `Waits ${duration(Date.now() - since)}: ${reason}` : 'A person is asked for';
  }
  if (status === 'closed') return 'Ended';
  return live ? 'The bot is writing…' : 'The bot answers';
}

function showHead(transcript) {
  const { status } = transcript;
  setText($('who'), shortName(openLine().visitor));
  setText($('status'), STATUS[status]);
  $('status').dataset.status = status;
  setText($('substatus'), substatus(transcript));
  const viewers = session.viewers(session.selected);
  refill($('viewers'), viewers, () => viewers.map((agent) => face(agent, 'has it open too')));
  const may = session.connected;
  $('claim').hidden = status === 'human' || status === 'closed';
  $('claim').disabled = !may;
  $('transfer').hidden = !session.holding;
  $('transfer').disabled = !may;
  $('release').hidden = !session.holding && status !== 'waiting';
  $('release').disabled = !may;
  $('close').hidden = status === 'closed';
  // what a colleague holds only they may end, or an administrator
  const others = status === 'human' && !session.holding && session.user?.role !== 'admin';
  $('close').disabled = !may || others;
}

function showNotice() {
  const shown = notice && notice.until > Date.now() && (notice.id === null || notice.id === session.selected);
  $('notice').hidden = !shown;
  if (shown) setText($('notice'), notice.text);
}

function composerHint({ status, agent }) {
  if (writingNote) return 'Only staff see this note…';
  if (session.holding) return 'Write to the visitor, or / for a canned reply…';
  if (status === 'human') return `${agent} holds this conversation. You can leave a private note.`;
  if (status === 'closed') return 'This conversation is closed.';
  return 'Take over to write to the visitor.';
}

const mayWrite = () => Boolean(session.transcript) && (writingNote || session.holding);
const blank = () => !writingNote && nextBlank($('text').value);

function showComposer(transcript) {
  const can = mayWrite();
  $('composer').classList.toggle('note', writingNote);
  $('mode-reply').setAttribute('aria-pressed', String(!writingNote));
  $('mode-note').setAttribute('aria-pressed', String(writingNote));
  $('text').disabled = !can;
  $('text').placeholder = composerHint(transcript);
  $('send').disabled = !can || !$('text').value.trim() || Boolean(blank());
  setText($('send'), writingNote ? 'Add note' : 'Send');
  setText($('hint'), blank() ? 'Fill in what stands in {{ }} first: Tab goes there' : 'Enter sends · Ctrl+Enter new line · / canned replies');
}

function showBar() {
  const { state, retryAt } = session.link;
  const wait = Math.max(1, Math.ceil(((retryAt ?? 0) - Date.now()) / 1000));
  const texts = { open: 'Live', connecting: 'Connecting…', waiting: `No connection, trying again in ${wait} s` };
  setText($('link'), texts[state] ?? '');
  $('link').dataset.state = state;
  setText($('me'), session.user ? `${session.user.username} · ${session.user.role}` : '');
  const others = session.agents.filter(({ username }) => username !== session.user?.username);
  refill($('online'), others.map(({ username }) => username), () => others.map((agent) => face(agent, 'is at the desk')));
}

function show() {
  if ($('desk').hidden) return;
  showBar();
  list.show();
  showTalk();
  showNotice();
  facts.show(openLine());
  assist.show();
}

// -- the agent's wishes

function open(id) {
  session.select(id);
  window.history.replaceState(null, '', `#${id}`);
  writingNote = false;
  editing = null;
  $('text').value = '';
  canned.update();
  show();
  list.reveal(id);
}

function move(step) {
  const ids = list.visible().map((line) => line.conversation_id);
  if (!ids.length) return;
  const at = ids.indexOf(session.selected);
  open(ids[Math.min(ids.length - 1, Math.max(0, at < 0 ? 0 : at + step))]);
}

function setFilter(name) {
  list.filter = name;
  show();
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
  if (blank()) {
    $('text').setSelectionRange(...blank());
    show();
    return;
  }
  session.write(writingNote ? 'note.add' : 'message.send', text, writingNote ? null : editing);
  $('text').value = '';
  editing = null;
  show();
  messages.toEnd();
}

function editDraft(text, ref) {
  setMode(false);
  editing = ref;
  $('text').value = text;
  show();
  $('text').setSelectionRange(text.length, text.length);
}

function onWithdrawn(id) {
  if (editing?.suggestions_id !== id) return;
  editing = null;
  if ($('text').value) tell('The conversation moved on while you edited a draft: read again before you send.', session.selected);
}

function press(id) {
  const button = $(id);
  if (!button.hidden && !button.disabled) button.click();
}

function writeCanned() {
  if (!session.holding) return;
  setMode(false);
  $('text').value = '/';
  canned.update();
}

new Keys([
  { keys: ['j', 'ArrowDown'], does: 'next conversation', action: () => move(1) },
  { keys: ['k', 'ArrowUp'], does: 'previous conversation', action: () => move(-1) },
  { keys: ['1'], does: 'show all', action: () => setFilter('all') },
  { keys: ['2'], does: 'show the queue', action: () => setFilter('waiting') },
  { keys: ['3'], does: 'show what the bot and colleagues hold', action: () => setFilter('live') },
  { keys: ['4'], does: 'show mine', action: () => setFilter('mine') },
  { keys: ['c'], does: 'take over', action: () => press('claim') },
  { keys: ['t'], does: 'hand over to a colleague', action: () => press('transfer') },
  { keys: ['r'], does: 'give back to the bot', action: () => press('release') },
  { keys: ['x'], does: 'close the conversation', action: () => press('close') },
  { keys: ['w'], does: 'write a reply', action: () => setMode(false) },
  { keys: ['/'], does: 'choose a canned reply', action: writeCanned },
  { keys: ['a'], does: 'send the first draft', action: () => assist.act('send') },
  { keys: ['e'], does: 'edit the first draft', action: () => assist.act('edit') },
  { keys: ['d'], does: 'go to the drafts: Enter sends, e edits, Delete turns down', action: () => assist.enter() },
  { keys: ['n'], does: 'write a private note', action: () => setMode(true) },
  { keys: ['g'], does: 'add a tag', action: () => $('tag').focus() },
  { keys: ['m'], does: 'keep the canned replies', action: () => canned.manage() },
  { keys: ['?'], does: 'this help', action: () => $('help').showModal() },
], () => !$('desk').hidden && !document.querySelector('dialog[open]'));

/** Enter sends; with Ctrl, Cmd or Shift it is a new line. */
function onTextKey(event) {
  if (event.isComposing || canned.key(event)) return;
  if (event.key === 'ArrowDown' && !$('text').value && assist.enter()) event.preventDefault();
  if (event.key !== 'Enter' || event.shiftKey) return;
  event.preventDefault();
  if (!event.ctrlKey && !event.metaKey) send();
  else $('text').setRangeText('\n', $('text').selectionStart, $('text').selectionEnd, 'end');
}

function showTransfer() {
  const others = session.agents.filter(({ username }) => username !== session.user.username);
  refill($('colleague'), others.map(({ username }) => username), () => [
    ...others.map(({ username, conversations }) => new Option(`${username} · ${conversations.length} open`, username)),
    new Option('Back into the queue, for whoever comes', ''),
  ]);
  $('nobody').hidden = others.length > 0;
  $('transferring').showModal();
}

function wireDialogs() {
  $('help-open').addEventListener('click', () => $('help').showModal());
  $('canned-open').addEventListener('click', () => canned.manage());
  $('close').addEventListener('click', () => $('closing').showModal());
  $('transfer').addEventListener('click', showTransfer);
  for (const button of document.querySelectorAll('[data-dismiss]')) {
    button.addEventListener('click', () => button.closest('dialog').close());
  }
  $('closing-form').addEventListener('submit', (event) => {
    event.preventDefault();
    session.close($('reason').value.trim());
    $('reason').value = '';
    $('closing').close();
  });
  $('transfer-form').addEventListener('submit', (event) => {
    event.preventDefault();
    session.transfer($('colleague').value, $('transfer-reason').value.trim());
    $('transfer-reason').value = '';
    $('transferring').close();
  });
}

function wire() {
  $('login').addEventListener('submit', submitLogin);
  $('logout').addEventListener('click', () => session.logout());
  $('claim').addEventListener('click', () => session.claim());
  $('release').addEventListener('click', () => session.release());
  $('composer').addEventListener('submit', send);
  $('text').addEventListener('keydown', onTextKey);
  $('text').addEventListener('input', () => {
    canned.update();
    if (!$('text').value) editing = null;
    changed();
  });
  $('text').addEventListener('blur', () => ($('canned').hidden = true));
  $('mode-reply').addEventListener('click', () => setMode(false));
  $('mode-note').addEventListener('click', () => setMode(true));
  $('newest').addEventListener('click', () => messages.toEnd());
  $('log').addEventListener('scroll', () => ($('newest').hidden = messages.following), { passive: true });
  for (const button of document.querySelectorAll('[data-filter]')) {
    button.addEventListener('click', () => setFilter(button.dataset.filter));
  }
  document.addEventListener('visibilitychange', changed);
  setInterval(changed, 1_000); // waiting times and count-downs
  wireDialogs();
}

wire();
if (session.loggedIn) enter();
else showGate('');
