/**
 * What stands below the messages instead of the field, or above it: consent, the line for a
 * person, the form of the hours in which nobody answers, suggested questions, the rating.
 */
import { large, t } from './i18n.js';
import { moment } from './view.js';

const ASK_AGAIN_MS = 20_000; // how old news of the line may be
const $ = (id) => document.getElementById(id);

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export class Panels {
  #form = false; // the contact form is open
  #wants = false; // the visitor asked for a person; do people answer?
  #askedAt = 0;
  #replies = '';
  #scores = '';

  /** `act`: {changed(), show(), send(text), focus(), close(), rated(score), tell(text)}. */
  constructor(session, act) {
    Object.assign(this, { session, act });
    $('person').addEventListener('click', () => this.askForPerson());
    $('leave').addEventListener('click', () => this.#openForm());
    $('contact').addEventListener('submit', (event) => this.#leave(event));
    $('contact-back').addEventListener('click', () => this.closeForm());
    $('agree').addEventListener('click', () => {
      session.agree();
      this.act.show();
      this.act.focus();
    });
    $('decline').addEventListener('click', () => {
      session.withdraw();
      this.act.close();
    });
    $('stars').addEventListener('change', () => ($('rating-more').hidden = false));
    $('rating').addEventListener('submit', (event) => this.#rate(event));
    $('again').addEventListener('click', () => {
      session.startNew();
      $('rating').reset();
      $('rating-more').hidden = true;
      this.act.show(); // what is hidden takes no focus
      this.act.focus();
    });
  }

  /** Which of them takes the field's place: '', consent, contact or ended. */
  get instead() {
    const { transcript, consent, words } = this.session;
    const underWay = words.some((entry) => !entry.error);
    if (consent === 'needed') return 'consent';
    if (this.#form) return 'contact';
    return transcript.status === 'closed' && !underWay ? 'ended' : '';
  }

  show() {
    this.#decide();
    const instead = this.instead;
    for (const name of ['consent', 'contact', 'ended']) $(name).hidden = name !== instead;
    $('composer').hidden = instead !== '';
    this.#showConsent();
    this.#showLine();
    this.#showReplies();
    this.#showRating();
  }

  /** True while something here changes with the clock. */
  get ticking() {
    return this.session.transcript.status === 'waiting';
  }

  // -- people

  askForPerson() {
    this.#wants = true;
    this.session.people = null;
    this.session.askPeople();
    this.act.changed();
  }

  /** Once it is known whether people answer: into the line, or the form. */
  #decide() {
    const { people, info, transcript } = this.session;
    if (transcript.status === 'human') this.#form = false;
    if (!this.#wants || !people) return;
    this.#wants = false;
    if (people.open || info?.offline_form === false) this.session.askForPerson();
    else this.#openForm();
  }

  #showLine() {
    const { transcript, people, connected } = this.session;
    const waits = transcript.status === 'waiting' && !this.#form;
    $('waiting').hidden = !waits;
    if (transcript.status !== 'waiting') return;
    if (connected && Date.now() - Math.max(people?.at ?? 0, this.#askedAt) > ASK_AGAIN_MS) {
      this.#askedAt = Date.now();
      this.session.askPeople();
    }
    const closed = people && !people.open;
    setText($('waiting-title'), closed ? this.#away() : t('people.coming'));
    setText($('waiting-text'), closed || !people ? '' : `${t('people.place', { count: people.place })} ${this.#estimate(people)}`.trim());
  }

  #estimate({ expected_wait: seconds }) {
    if (seconds === null) return '';
    const began = this.session.transcript.events.findLast((event) => event.type === 'status.changed')?.at;
    const left = seconds - (began ? (Date.now() - began) / 1000 : 0);
    if (left < -60 && left < -seconds) return t('people.longer');
    return seconds < 60 ? t('people.soon') : t('people.minutes', { count: Math.round(seconds / 60) });
  }

  #away() {
    const opens = this.session.people?.opens_at;
    return opens ? t('people.back', { time: moment(opens) }) : t('people.away');
  }

  #openForm() {
    this.#form = true;
    const { people } = this.session;
    setText($('contact-lead'), [people && !people.open ? this.#away() : '', t('form.lead')].join(' ').trim());
    $('contact-error').textContent = '';
    this.act.changed();
    requestAnimationFrame(() => $('contact-email').focus());
  }

  closeForm() {
    this.#form = false;
    this.act.changed();
    requestAnimationFrame(() => this.act.focus());
  }

  #leave(event) {
    event.preventDefault();
    const [name, email, text] = ['name', 'email', 'text'].map((field) => $(`contact-${field}`).value.trim());
    const bad = !/^[^@\s]+@[^@\s]+\.[^@\s]+$/u.test(email) ? ['email', 'form.bad_email']
      : !text ? ['text', 'form.empty']
      : this.session.tooLong(text) ? ['text', 'error.too_long'] : null;
    setText($('contact-error'), bad ? t(bad[1], { max: large(this.session.info?.max_chars ?? 0) }) : '');
    for (const field of ['email', 'text']) $(`contact-${field}`).setAttribute('aria-invalid', String(bad?.[0] === field));
    if (bad) {
      $(`contact-${bad[0]}`).focus();
      return;
    }
    this.session.leaveContact({ name, email, text });
    $('contact-text').value = '';
    this.act.tell(t('form.sent', { email }));
    this.closeForm();
  }

  // -- the smaller ones

  #showConsent() {
    const url = this.session.info?.privacy_url;
    $('privacy').hidden = !url;
    if (url && $('privacy').href !== url) $('privacy').href = /^https?:/u.test(url) ? url : '';
  }

  #showReplies() {
    const { transcript, words, info, consent } = this.session;
    const begun = words.length || transcript.events.some((event) => event.type === 'message.created');
    const wanted = begun || consent === 'needed' || transcript.status !== 'bot' || this.#form ? [] : (info?.quick_replies ?? []);
    $('replies').hidden = !wanted.length;
    if (this.#replies === wanted.join('\n')) return;
    this.#replies = wanted.join('\n');
    $('replies').replaceChildren(...wanted.map((text) => {
      const button = Object.assign(document.createElement('button'), { type: 'button', className: 'pill', textContent: text, dir: 'auto' });
      button.addEventListener('click', () => {
        this.act.send(text);
        this.act.focus();
      });
      return button;
    }));
  }

  #showRating() {
    if (this.#scores !== t('rate.score', { count: 1 })) this.#buildStars();
    const rated = this.session.transcript.events.some((event) => event.type === 'rating.given');
    $('rating').hidden = rated;
    $('thanks').hidden = !rated;
  }

  #buildStars() {
    this.#scores = t('rate.score', { count: 1 });
    $('stars').replaceChildren();
    for (let score = 1; score <= 5; score += 1) {
      const name = t('rate.score', { count: score });
      const input = Object.assign(document.createElement('input'), { type: 'radio', name: 'score', value: score, id: `star-${score}` });
      const label = Object.assign(document.createElement('label'), { htmlFor: input.id, title: name, textContent: '★' });
      input.setAttribute('aria-label', name);
      label.setAttribute('aria-hidden', 'true');
      $('stars').append(input, label);
    }
  }

  #rate(event) {
    event.preventDefault();
    const score = Number(new FormData($('rating')).get('score'));
    if (!score) return;
    this.session.rate(score, $('comment').value.trim());
    this.act.rated(score);
  }
}
