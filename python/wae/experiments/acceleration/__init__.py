"""The parts of ``wae accelerate``; :mod:`wae.experiments.accelerate` runs them in order.

::

    settings     the user's settings, checked
    data         the images, at the size that a network takes
    task         the trained network and its images, opened
    folder       the files that are written, and the record of each step's result
    networks     the initial and the trained WAE network; the teacher
    plans        training plans
    training     trainings that resume after an interruption
    trials       choices made by short trainings
    target       the image size and the light body that are fast enough
    baselines    the baselines of --compare
    measuring    accuracy and time
    deployment   every network in its fastest form; the ONNX file
    report       what the report says
    report_files report.md, report.html
"""
