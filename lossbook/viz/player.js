// Every player that is on the page and not yet running. All look-ups stay inside the figure: no ids, no globals.
for (const figure of document.querySelectorAll("figure.lossbook-play:not([data-ready])")) {
  const { frames, index, controls, fps, alt } = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  const image = figure.querySelector("img");
  const inputs = [...figure.querySelectorAll("input, select")];
  const button = figure.querySelector("button");
  // The frame on show before the script ran is not repeated in the list.
  const first = image.src;

  const draw = () => {
    let place = 0;
    const shown = inputs.map((input, i) => {
      const { name, texts } = controls[i];
      const value = Number(input.value);
      place = place * texts.length + value;
      if (input.type === "range") {
        input.setAttribute("aria-valuetext", texts[value]);
        input.nextElementSibling.textContent = texts[value];
      }
      return `${name}: ${texts[value]}`;
    });
    const frame = frames[index[place]];
    image.src = frame ? "data:image/webp;base64," + frame : first;
    image.alt = `${alt} (${shown.join(", ")})`;
  };
  inputs.forEach((input) => input.addEventListener("input", draw));

  if (button) {
    let timer = null;
    const slider = inputs[0];
    const stop = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "▶ play";
      image.parentElement.setAttribute("aria-live", "polite");
    };
    const step = () => {
      // A cell that was deleted or run again takes its timer with it.
      if (!figure.isConnected) return stop();
      slider.value = (Number(slider.value) + 1) % index.length;
      draw();
      if (Number(slider.value) === index.length - 1) stop();
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      button.textContent = "❚❚ pause";
      image.parentElement.setAttribute("aria-live", "off");
      timer = setInterval(step, 1000 / fps);
    });
    slider.addEventListener("pointerdown", stop);
  }
  figure.dataset.ready = "";
  figure.querySelector(".controls").hidden = false;
}
