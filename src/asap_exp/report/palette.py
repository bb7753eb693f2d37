"""Colours of the figures: Okabe and Ito's palette, distinct for colour-blind readers."""

BLACK, GREY = "#000000", "#777777"
ORANGE, YELLOW, DARK_YELLOW = "#D55E00", "#E69F00", "#8C6100"
BLUE, LIGHT_BLUE = "#0072B2", "#56B4E9"
GREEN, PINK = "#009E73", "#CC79A7"
