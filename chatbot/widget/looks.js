/** The page's colors, corners and font in the frame, made readable where they are not. */

/** Relative luminance of `#rrggbb` (WCAG 2.2). */
function luminance(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => {
    const value = parseInt(hex.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

export function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

function mix(hex, target, share) {
  const part = (at) => {
    const [from, to] = [parseInt(hex.slice(at, at + 2), 16), parseInt(target.slice(at, at + 2), 16)];
    return Math.round(from + (to - from) * share).toString(16).padStart(2, '0');
  };
  return `#${part(1)}${part(3)}${part(5)}`;
}

/** `color`, darker or lighter as far as it takes to read it on `ground`. */
export function readable(color, ground, toward) {
  for (let share = 0; share < 1; share += 0.05) {
    const shade = mix(color, toward, share);
    if (contrast(shade, ground) >= 4.6) return shade;
  }
  return toward;
}

export function applyLooks({ theme, color, radius, font } = {}) {
  const root = document.documentElement;
  if (theme) root.dataset.theme = ['light', 'dark'].includes(theme) ? theme : 'auto';
  const set = (name, value) => root.style.setProperty(name, value);
  if (/^#[\da-f]{6}$/iu.test(color ?? '')) {
    set('--accent', color);
    set('--on-accent', contrast(color, '#ffffff') >= 4.5 ? '#ffffff' : '#000000');
    // on the grounds of both themes: --soft of base.css
    set('--accent-light', readable(color, '#f2f4f7', '#000000'));
    set('--accent-dark', readable(color, '#23272f', '#ffffff'));
  }
  if (/^\d{1,2}px$/u.test(radius ?? '')) set('--round', radius);
  if (font && font.length < 200 && CSS.supports('font-family', font)) set('--font', font);
}
