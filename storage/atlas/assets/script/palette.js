// Colours of the canvas, read from the style sheet so that both have one source, and the ramp of the levels.

// Strata from ochre (low) to indigo (high). Lightness falls with the hue, so that the order survives every
// kind of colour blindness; the level is always also said by place and by name.
const RAMPS = {
  light: [[148, 96, 16], [176, 68, 42], [134, 54, 111], [61, 71, 148]],
  dark: [[232, 180, 79], [240, 135, 106], [213, 138, 198], [154, 166, 245]],
};

function levelColour(model, level, alpha = 1) {
  if (level === 0) return `rgb(${theme() === "dark" ? "160 167 180" : "95 100 110"} / ${alpha})`;
  const learnt = model.levels.filter((entry) => entry.level > 0).map((entry) => entry.level);
  const ramp = RAMPS[theme()];
  const at = learnt.length > 1 ? (learnt.indexOf(level) / (learnt.length - 1)) * (ramp.length - 1) : 3;
  const low = Math.min(ramp.length - 2, Math.floor(at));
  const mix = ramp[low].map((value, i) => Math.round(value + (at - low) * (ramp[low + 1][i] - value)));
  return `rgb(${mix.join(" ")} / ${alpha})`;
}

const theme = () => document.documentElement.dataset.theme;

function inks() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    paper: read("--paper"),
    ink: read("--ink"),
    muted: read("--muted"),
    plus: read("--plus-rgb"),
    minus: read("--minus-rgb"),
    font: read("--sans"),
  };
}
